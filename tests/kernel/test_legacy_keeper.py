"""Old objects through the whole keeper: maps in SEC("maps"), tc's pins, tail calls, inner maps."""

import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.directories import remove_tree
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.exposition import exposition
from bpfkeeperd.series import status_series
from bpfkeeperd.state import Outcome, ReloadResult
from bpfkeeperd.steps import Step
from tests.kernel.test_legacy import DEBUG, SO_ATTACH_BPF
from tests.kernel.test_reload import plan_now
from tests.legacy_objects import legacy_object
from tests.machine import Netns, inside_cgroup, map_id, map_value, send_datagrams
from tests.scenario import World, refused
from tests.system.process import cli

Put = Callable[..., Path]
EGRESS = "{count: {type: cgroup_skb/egress, attach: [{cgroup: CGROUP}]}}"


@pytest.fixture
def put(world: World, tmp_path_factory: pytest.TempPathFactory) -> Put:
    """Puts a compiled old object where the manifest finds it, and where the hunt for leaks does."""
    seen = tmp_path_factory.mktemp("objects")

    def put_legacy(name: str, source: str = "versions", **macros: object) -> Path:
        data = legacy_object(source, **macros)  # type: ignore[arg-type]
        path = world.directory / f"{name}.bpf.o"
        Path(f"{path}.new").write_bytes(data)
        os.replace(f"{path}.new", path)
        (seen / f"{hashlib.sha1(data).hexdigest()}.bpf.o").write_bytes(data)
        return path

    return put_legacy


def write(world: World, programs: str = EGRESS, *, pins: str = "", more: str = "") -> None:
    world.write(
        f"{more}objects:\n  old:\n    file: old.bpf.o\n"
        f"    pin_maps: [{pins}]\n    programs: {programs}\n"
    )


def good(world: World, *, force: bool = False) -> Outcome:
    """A keeper that starts, reloads and goes; there is nothing left to do."""
    outcome = world.apply(force=force)
    assert outcome.result is ReloadResult.OK, outcome
    assert plan_now(world) == ()
    return outcome


def own_name(path: Path, name: str = "own") -> str:
    """Where tc pins a map of an object's namespace."""
    return f"tc/{hashlib.sha1(path.read_bytes()).hexdigest()}/{name}"


def numbers(world: World, name: str, count: int = 4) -> list[int | None]:
    values = [map_value(world.pins / name, key.to_bytes(4, "little"), 8) for key in range(count)]
    return [None if value is None else int.from_bytes(value, "little") for value in values]


def program_path(world: World, program: str) -> str:
    (found,) = (
        "/".join(pin.path)
        for pin in kernel.scan(world.layout.objects, 3, kernel.PinKind.PROGRAM)
        if pin.path[-1] == program
    )
    return f"{world.layout.objects}/{found}"


def run(world: World, program: str) -> None:
    """Runs a pinned socket filter once."""
    fd = kernel.pinned(program_path(world, program), kernel.PinKind.PROGRAM)
    assert fd is not None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with kernel.holding(fd), ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, fd)
        ours.send(b"packet")


@DEBUG
@pytest.mark.parametrize("form", ["DEF5", "DEF7", "GOBPF", "TC9"])
def test_a_new_version_counts_on(world: World, put: Put, form: str, debug: bool) -> None:
    put("old", FORM=form, debug=debug)
    write(world, pins="counts, own")
    with inside_cgroup(world.cgroup):
        good(world)
        before, links = world.map_id(), world.link_ids()
        send_datagrams(3)
        put("old", FORM=form, debug=debug, VERSION=2)
        good(world)
        send_datagrams(2)
    assert numbers(world, "counts") == [0, 3, 2, 0] == numbers(world, "own")
    assert world.map_id() == before
    ((path, (link, program)),) = world.link_ids().items()
    assert link == links[path][0] and program != links[path][1]
    assert world.changes == []


SECTIONS = {
    "tc/ingress": (8, "cgroup_skb/egress"),
    "socket1": (1, "socket_filter"),
    "filter": (1, "socket_filter"),
    "prog_with_no_kind": (9, "cgroup/sock_create"),
    "classifier": (3, ""),
    "kprobe/do_nothing": (2, ""),
    "cls": (3, "sched_cls"),
}
"""The kernel's number of the type, and what the manifest has to say."""


@pytest.mark.parametrize("section", SECTIONS)
def test_a_type_where_the_section_does_not_say(world: World, put: Put, section: str) -> None:
    number, given = SECTIONS[section]
    file = put("old", FORM="DEF5", SECTION=f'"{section}"')
    if given and "/" not in section:
        write(world, "{}", pins="counts")
        expected = (
            f'object old: {file}: the section "{section}" of program count does not say what type'
            " of program it is: write programs: {count: {type: socket_filter}}, or whatever it is"
        )
        assert refused(world.apply()) == expected
        checked = cli(world, "check")
        assert checked.returncode == 1 and checked.stdout.splitlines()[-1] == expected
        assert not (world.pins / "counts").exists()
    write(world, f"{{count: {{type: {given}}}}}" if given else "{}", pins="counts")
    good(world)
    fd = kernel.pinned(program_path(world, "count"), kernel.PinKind.PROGRAM)
    assert fd is not None
    with kernel.holding(fd):
        assert kernel.program_info(fd).type == number
    before = world.map_id()
    put("old", FORM="DEF5", SECTION=f'"{section}"', VERSION=2)
    good(world)
    assert world.map_id() == before


def test_a_classifier_attached_where_the_manifest_says(
    world: World, put: Put, netns: Netns
) -> None:
    put("old", FORM="TC9", SECTION='"classifier"')
    target = f"{{interface: veth0, netns: {netns.here}}}"
    write(world, f"{{count: {{attach: [{target}]}}}}", pins="counts")
    assert "type: tcx/ingress beside attach" in refused_manifest(world)
    write(world, f"{{count: {{type: tcx/ingress, attach: [{target}]}}}}", pins="counts")
    good(world)
    netns.send(3)
    seen = numbers(world, "counts")[1]
    assert seen and seen >= 3
    put("old", FORM="TC9", SECTION='"classifier"', VERSION=2)
    good(world)
    netns.send(3)
    counted = numbers(world, "counts")
    assert counted[2] and counted[2] >= 3
    assert numbers(world, "tc/globals/shared")[1:3] == counted[1:3]


def refused_manifest(world: World) -> str:
    done = cli(world, "check")
    assert done.returncode == 2
    return done.stderr


@DEBUG
def test_maps_that_tc_would_pin(world: World, put: Put, debug: bool) -> None:
    """Those of an object's namespace go along to the hash of the new file, and back again."""
    first = own_name(put("old", FORM="TC9", debug=debug))
    write(world)
    ids = {}
    with inside_cgroup(world.cgroup):
        good(world)
        for name in (first, "tc/globals/shared"):
            ids[name] = world.map_id(name)
            assert ids[name]
        assert not (world.pins / "counts").exists() and not (world.pins / "own").exists()
        send_datagrams(1)
        second = own_name(put("old", FORM="TC9", debug=debug, VERSION=2))
        outcome = good(world)
        assert f"rename map {first} to {second} (ID {ids[first]}, contents kept)" in outcome.done
        send_datagrams(2)
        assert world.map_id(second) == ids[first]
        assert numbers(world, second) == [0, 1, 2, 0]
        assert numbers(world, "tc/globals/shared") == [None, 1, 2, None]
        assert sorted(os.listdir(world.pins / "tc")) == sorted((second.split("/")[1], "globals"))
        put("old", FORM="TC9", debug=debug)
        good(world)
        send_datagrams(4)
    assert world.map_id(first) == ids[first]
    assert world.map_id("tc/globals/shared") == ids["tc/globals/shared"]
    assert numbers(world, first) == [0, 5, 2, 0]
    assert world.changes == []


def test_an_object_map_goes_along_or_stays(world: World, put: Put) -> None:
    """A refused version changes nothing; a directory with something else in it stays."""
    first = own_name(put("old", FORM="TC9"))
    write(world)
    good(world)
    before = world.map_id(first)
    with kernel.holding(kernel.map_create(2, "other", 4, 4, 4)) as fd:
        kernel.pin(fd, str((world.pins / first).parent / "other"))
    second = own_name(put("old", FORM="TC9", VERSION=2))

    refusing = True

    def refuse(step: Step, subject: object) -> None:
        if refusing and step is Step.RENAME_MAP:
            raise KeeperError("on purpose")

    everything = pins_with_ids(world)
    with world.keeper(refuse) as keeper:
        assert "on purpose" in refused(world.reload(keeper))
        assert pins_with_ids(world) == everything
        refusing = False
        assert world.reload(keeper).result is ReloadResult.OK
    assert world.map_id(second) == before
    assert os.listdir((world.pins / first).parent) == ["other"]
    assert world.apply().done == ()


def pins_with_ids(world: World) -> dict[str, int | None]:
    """Every map pinned outside the keeper's own directory, and every directory."""
    found: dict[str, int | None] = {}
    for directory, directories, names in os.walk(world.pins):
        if Path(directory) == world.pins:
            directories.remove("bpfkeeperd")
        for name in names:
            path = Path(directory) / name
            if not name.endswith(".debug"):
                found[str(path.relative_to(world.pins))] = map_id(path)
        found |= {f"{directory}/{name}/": None for name in directories}
    return found


def test_an_object_map_is_recreated_by_a_new_file(world: World, put: Put) -> None:
    """The former map is not dropped for it: it stays pinned where it was."""
    first = own_name(put("old", FORM="TC9"))
    write(world)
    good(world)
    before = world.map_id(first)
    data = legacy_object("versions", FORM="TC9", SIZE=8)
    (world.directory / "old.bpf.o").write_bytes(data)
    second = own_name(world.directory / "old.bpf.o")
    said = refused(world.apply())
    assert f"map {second}: the pinned map (ID {before}) differs: max_entries is 4" in said
    assert world.map_id(first) == before and not (world.pins / second).exists()
    write(world, more="defaults: {on_mismatch: recreate}\n")
    good(world)
    assert world.map_id(first) == before and world.map_id(second) != before


@DEBUG
def test_a_map_that_tc_pinned_is_adopted(world: World, put: Put, netns: Netns, debug: bool) -> None:
    """The real tc loads an object of now, whose map it pins where those of old objects are."""
    file = world.put("theirs", "shared", MAP="shared", PIN=1, HOOK='"tc"')
    environment = {**os.environ, "TC_BPF_MNT": str(world.pins)}

    def tc(*arguments: object) -> None:
        command = ["tc", "-n", netns.here, *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, env=environment)

    tc("qdisc", "add", "dev", "veth0", "clsact")
    tc("filter", "add", "dev", "veth0", "ingress", "bpf", "obj", file, "sec", "tc")
    before = world.map_id("tc/globals/shared")
    netns.send(2)
    first = numbers(world, "tc/globals/shared")[3]
    assert before and first and first >= 2
    put("old", FORM="TC9", debug=debug)
    write(world)
    assert "create map tc/globals/shared" not in "\n".join(plan_now(world))
    good(world)
    with inside_cgroup(world.cgroup):
        send_datagrams(5)
    netns.send(2)
    assert world.map_id("tc/globals/shared") == before
    counted = numbers(world, "tc/globals/shared")
    assert counted[1] == 5 and counted[3] and counted[3] >= first + 2
    done = cli(world, "unload", "--maps")
    assert done.returncode == 0
    assert "tc/globals/shared (made by somebody else)" in done.stdout
    assert sorted(os.listdir(world.pins / "tc")) == ["globals"]
    assert world.map_id("tc/globals/shared") == before


def test_a_map_of_an_object_that_tc_pinned_is_adopted(world: World, put: Put) -> None:
    """As an old tc left it: below the hash of the file, in directories of its own."""
    first = world.pins / own_name(put("old", FORM="TC9"))
    first.parent.mkdir(mode=0o700, parents=True)
    with kernel.holding(kernel.map_create(2, "own", 4, 8, 4)) as fd:
        kernel.pin(fd, str(first))
        kernel.map_update(fd, (3).to_bytes(4, "little"), (99).to_bytes(8, "little"))
        before = kernel.map_info(fd).id
    write(world)
    with inside_cgroup(world.cgroup):
        good(world)
        send_datagrams(1)
        second = own_name(put("old", FORM="TC9", VERSION=2))
        good(world)
        send_datagrams(1)
    assert world.map_id(second) == before and numbers(world, second) == [0, 1, 1, 99]
    assert not first.parent.exists()
    assert cli(world, "unload", "--maps").returncode == 0
    assert world.map_id(second) == before, "tc made it"


OLD = f"old: {{file: old.bpf.o, programs: {EGRESS}}}"
NEW = (
    "new: {file: new.bpf.o, pin_maps: {acl: tc/globals/shared},"
    " programs: {count: {attach: [{cgroup: CGROUP}]}}}"
)


@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)], ids=["old first", "new first"])
def test_an_old_and_a_new_object_share_a_map(
    world: World, put: Put, order: tuple[str, str]
) -> None:
    put("old", FORM="TC9")
    world.put("new", "shared")
    world.write("objects:\n" + "".join(f"  {line}\n" for line in order))
    with inside_cgroup(world.cgroup):
        good(world)
        before = world.map_id("tc/globals/shared")
        send_datagrams(2)
        put("old", FORM="TC9", VERSION=2)
        good(world)
        send_datagrams(3)
        world.put("new", "shared", VERSION=0)
        good(world)
        send_datagrams(4)
    assert world.map_id("tc/globals/shared") == before
    assert numbers(world, "tc/globals/shared") == [4, 2, 7, 5]
    world.put("new", "shared", ENTRIES=17)
    done = cli(world, "check")
    assert done.returncode == 2
    assert "declares map tc/globals/shared otherwise than object" in done.stderr
    assert "max_entries" in done.stderr


@DEBUG
@pytest.mark.parametrize("pinning", [0, 2])
def test_tail_calls(world: World, put: Put, pinning: int, debug: bool) -> None:
    """Slots that sections name are filled, survive the keeper, and are renewed with the object."""
    put("old", "tail_calls", debug=debug, PINNING=pinning)
    array = "tc/globals/jumps" if pinning else "bpfkeeperd/arrays/old/jumps"
    others = ("first", "second", "third", "stranger")
    given = "".join(f"{name}: {{type: cgroup_skb/egress}}, " for name in others)
    programs = f"{{{given}{EGRESS.replace('count', 'program')[1:]}"
    write(world, programs, pins="steps")
    with inside_cgroup(world.cgroup):
        good(world)
        before, jumps = world.map_id("steps"), world.map_id(array)
        filled = slots(world, array)
        assert filled == {0: program_id(world, "first"), 5: program_id(world, "second")}
        send_datagrams(1)
        assert numbers(world, "steps") == [1, 2, 4, 8]
        assert good(world).done == ()
        assert slots(world, array) == filled
        put("old", "tail_calls", debug=debug, PINNING=pinning, VERSION=10)
        outcome = good(world)
        assert any(line.startswith(f"renew prog_array {array}") for line in outcome.done)
        send_datagrams(1)
    assert numbers(world, "steps") == [11, 22, 44, 88]
    assert world.map_id("steps") == before and world.map_id(array) != jumps
    assert slots(world, array) == {
        0: program_id(world, "first"),
        5: program_id(world, "second"),
    }


def program_id(world: World, program: str) -> int:
    fd = kernel.pinned(program_path(world, program), kernel.PinKind.PROGRAM)
    assert fd is not None
    with kernel.holding(fd):
        return kernel.program_info(fd).id


def slots(world: World, name: str) -> dict[int, int]:
    """What a small map of maps or of programs holds: slot to ID."""
    values = {key: map_value(world.pins / name, key.to_bytes(4, "little"), 4) for key in range(5)}
    if map_spare := map_value(world.pins / name, (5).to_bytes(4, "little"), 4):
        values[5] = map_spare
    return {key: int.from_bytes(value, "little") for key, value in values.items() if value}


@DEBUG
def test_inner_maps_by_id(world: World, put: Put, debug: bool) -> None:
    """Kept inner maps stay in their slots; those that are not kept stay alive in the outer one."""
    put("old", "nested", FORM="TC9", debug=debug)
    write(
        world,
        EGRESS.replace("count", "program"),
        pins="outer, by_key, inner_a, inner_b",
    )
    with inside_cgroup(world.cgroup):
        good(world)
        ids = {name: world.map_id(name) for name in ("outer", "by_key", "inner_a", "inner_b")}
        filled = {1: ids["inner_b"], 3: ids["inner_a"]}
        assert slots(world, "outer") == filled == slots(world, "by_key")
        send_datagrams(1)
        put("old", "nested", FORM="TC9", debug=debug, VERSION=10)
        good(world)
        send_datagrams(1)
    assert {name: world.map_id(name) for name in ids} == ids
    assert slots(world, "outer") == filled == slots(world, "by_key")
    assert numbers(world, "inner_a", 2) == [0, 55] and numbers(world, "inner_b", 2) == [77, 0]


def test_inner_maps_that_nobody_keeps(world: World, put: Put) -> None:
    put("old", "nested", FORM="TC9")
    write(world, EGRESS.replace("count", "program"), pins="outer")
    with inside_cgroup(world.cgroup):
        good(world)
        before, filled = world.map_id("outer"), slots(world, "outer")
        put("old", "nested", FORM="TC9", VERSION=10)
        good(world)
        assert world.map_id("outer") == before and len(filled) == 2
        assert slots(world, "outer") == filled


def test_pins_come_back_with_their_directories(world: World, put: Put) -> None:
    own = own_name(put("old", FORM="TC9"))
    write(world)
    with world.keeper() as keeper:
        world.reload(keeper)
        before = {name: world.map_id(name) for name in (own, "tc/globals/shared")}
        remove_tree(str(world.pins / "tc"))
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert {name: world.map_id(name) for name in before} == before
        assert world.reload(keeper).done == ()


@pytest.mark.parametrize("kept", [True, False], ids=["daemon", "no daemon"])
def test_pins_that_went_before_a_new_file_came(world: World, put: Put, kept: bool) -> None:
    """The map goes on under the hash of the new file, though nothing is pinned under the old."""
    first = own_name(put("old", FORM="TC9"))
    write(world)
    with world.keeper() as keeper:
        world.reload(keeper)
        before = world.map_id(first)
        remove_tree(str(world.pins / "tc"))
        second = own_name(put("old", FORM="TC9", VERSION=2))
        if kept:
            assert world.reload(keeper).result is ReloadResult.OK
    good(world)
    assert world.map_id(second) == before
    assert sorted(os.listdir(world.pins / "tc")) == sorted((second.split("/")[1], "globals"))
    assert cli(world, "unload", "--maps").returncode == 0
    assert not (world.pins / "tc").exists()


def test_commands(world: World, put: Put) -> None:
    """Names with slashes in all that people and programs read."""
    file = put("old", FORM="TC9")
    own = own_name(file)
    write(world, pins="counts")
    checked = cli(world, "check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.splitlines() == [
        f"{world.manifest_file}: 1 object, 3 kept maps",
        f"object old: {file} (license GPL)",
        "  map counts (array, key 4 B, value 8 B, max_entries 4), kept as counts",
        f"  map own (array, key 4 B, value 8 B, max_entries 4), kept as {own}",
        "  map shared (hash, key 4 B, value 8 B, max_entries 16), kept as tc/globals/shared",
        "  program count (section filter, type cgroup_skb/egress)",
    ]
    report = json.loads(cli(world, "check", "--json").stdout)["objects"]["old"]
    kept = {"counts": "counts", "own": own, "shared": "tc/globals/shared"}
    assert report["kept_maps"] == kept == {"counts": "counts"} | report["spec"]["pins"]
    assert report["types"] == {"count": "cgroup_skb/egress"}
    with world.keeper() as keeper:
        world.reload(keeper)
        text = exposition(status_series(keeper.status, str).blocks)
    for name in kept.values():
        assert f'bpfkeeper_map_id{{map="{name}"}} {world.map_id(name)}\n' in text
    with inside_cgroup(world.cgroup):
        send_datagrams(3)
    listed = json.loads(cli(world, "maps", "--json").stdout)
    assert {entry["name"]: entry["id"] for entry in listed} == {
        name: world.map_id(name) for name in kept.values()
    }
    table = cli(world, "maps").stdout.splitlines()
    assert {line.split()[0] for line in table} == {"MAP", *kept.values()}
    status = cli(world, "status")
    assert status.returncode == 0 and own in status.stdout and "tc/globals/shared" in status.stdout
    dumped = json.loads(cli(world, "dump", "tc/globals/shared", "--json").stdout)
    assert dumped == [{"key": "01:00:00:00", "value": "03:00:00:00:00:00:00:00"}]
    assert json.loads(cli(world, "dump", own, "--json", "--limit", "1").stdout)
    assert "globals" in cli(world, "dump", "tc/globals/share").stderr


def test_unload_of_directories(world: World, put: Put) -> None:
    """Pins that the keeper made go, and the directories that it left empty; others stay."""
    own = own_name(put("old", FORM="TC9"))
    world.put("new", "shared")
    (world.pins / "team").mkdir(mode=0o750)
    (world.pins / "theirs").mkdir(mode=0o700)
    with kernel.holding(kernel.map_create(2, "other", 4, 4, 4)) as fd:
        kernel.pin(fd, str(world.pins / "theirs" / "other"))
        kernel.pin(fd, str(world.pins / "top"))
    world.write(
        f"objects:\n  {OLD}\n  {NEW.replace('tc/globals/shared', 'team/acl')}\n"
        "maps: {theirs/mine: {type: array, value: u32, max_entries: 1}}\n"
    )
    good(world)
    made = [own, "tc/globals/shared", "team/acl", "theirs/mine"]
    done = cli(world, "unload")
    left = ", ".join(sorted([*made, "theirs/other", "top"]))
    assert f"maps that stay pinned, with their contents: {left} (--maps unpins" in done.stdout
    ids = {name: world.map_id(name) for name in made}
    done = cli(world, "unload", "--maps")
    assert done.returncode == 0, done
    for name, number in ids.items():
        assert f"unpinned map {name} (ID {number}): its contents are gone" in done.stdout
    assert "their contents: theirs/other, top (made by somebody else)" in done.stdout
    assert not (world.pins / "tc").exists()
    assert list((world.pins / "team").iterdir()) == [], "somebody prepared it"
    assert os.listdir(world.pins / "theirs") == ["other"]


def test_another_map_under_a_name_in_a_directory(world: World) -> None:
    """Its users move to it: they are found by the name that the kernel has of the former one."""
    world.put("new", "shared")
    world.write(
        f"objects:\n  {NEW.replace('tc/globals/shared', 'team/quota')}\n"
        "maps: {team/quota: {type: hash, key: u32, value: u64, max_entries: 16}}\n"
    )
    good(world)
    (world.pins / "team" / "quota").unlink()
    with kernel.holding(kernel.map_create(1, "theirs", 4, 8, 16)) as fd:
        kernel.pin(fd, str(world.pins / "team" / "quota"))
    assert "somebody pinned another map as team/quota" in "\n".join(plan_now(world))
    good(world)
    with inside_cgroup(world.cgroup):
        send_datagrams(2)
    assert numbers(world, "team/quota")[3] == 2


def test_recreated_in_a_directory(world: World) -> None:
    world.put("new", "shared")
    world.write(f"defaults: {{on_mismatch: recreate}}\nobjects:\n  {NEW}\n")
    good(world)
    before = world.map_id("tc/globals/shared")
    world.put("new", "shared", ENTRIES=17)
    good(world)
    after = world.map_id("tc/globals/shared")
    assert after and after != before
