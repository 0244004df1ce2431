"""What drifts is put right by the daemon, without a reload (E)."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from tests.machine import Netns, detach_link, inside_cgroup, ip, send_datagrams
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import METRICS, NO_METRICS

SOON = 30.0
"""Seconds in which something must have happened; it takes some 50 ms."""


def until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def counted(world: World, packets: int = 3) -> int:
    """How many of the packets of this process in the world's cgroup are counted."""
    before = world.events()[0]
    with inside_cgroup(world.cgroup):
        send_datagrams(packets)
    return world.events()[0] - before


def prepare(world: World, extra: str = NO_METRICS) -> None:
    world.put("one")
    world.write_counter("one", extra=extra)


def put_tcx(world: World) -> None:
    world.put("one", HOOK='"tcx/ingress"', VERDICT=-1)


def link_path(world: World) -> Path:
    (path,) = world.link_ids()
    return Path(world.layout.links) / path


@pytest.fixture
def kept(world: World) -> Callable[[], tuple[object, ...]]:
    """IDs of the map, of the links with their programs, and of the programs."""

    def ids() -> tuple[object, ...]:
        return world.map_id(), world.link_ids(), world.program_ids()

    return ids


@pytest.mark.parametrize(
    "pin", ["counts", "bpfkeeperd/links", "bpfkeeperd/objects", "bpfkeeperd", ""]
)
def test_a_lost_pin_is_restored(world: World, start: Start, pin: str) -> None:
    """Of the map, the link, the program; everything: the same one, with its contents."""
    prepare(world)
    daemon = start()
    assert counted(world) == 3
    before = world.everything()
    place = world.pins / pin
    for name in [place] if place.is_file() else list(place.iterdir()):
        if name.is_dir():  # it may be made again while it is removed
            name.rename(f"{name}_aside")
            shutil.rmtree(f"{name}_aside")
        elif not name.name.endswith("debug"):
            name.unlink()
    until(lambda: world.everything().keys() == before.keys(), "pins are not there again")
    assert world.everything() == before
    assert counted(world) == 3
    assert "load object" not in daemon.log.partition("applied in")[2]
    restored = {"bpfkeeperd": 2, "": 3}.get(pin, 1)
    daemon.wait_log("healed: restore the pin of ", restored)
    assert daemon.log.count("healed: restore the pin of ") == restored


@pytest.mark.parametrize("kind", ["stubs", "attached"])
def test_a_lost_pin_of_what_has_no_link_of_its_own(
    world: World, start: Start, netns: Netns, kind: str
) -> None:
    """A stub, or the record of a filter: at once, like the others."""
    section = '"clsact/ingress"' if kind == "attached" else '"raw_tp/sys_exit"'
    program = "count: {attach: auto, swap: exact}"
    if kind == "attached":
        program = f"count: {{attach: [{{interface: veth0, netns: {netns.here}}}]}}"
    world.put("one", HOOK=section, VERDICT=0)
    world.write(
        f"{NO_METRICS}\n"
        f"objects: {{one: {{file: one.bpf.o, pin_maps: [counts], programs: {{{program}}}}}}}\n"
    )
    daemon = start()
    pins = world.layout_files(kind)
    assert len(pins) == {"stubs": 2, "attached": 1}[kind]
    time.sleep(0.5)  # what a new interface brings about is over
    for pin in pins:
        pin.unlink()
    until(lambda: world.layout_files(kind) == pins, "pins are not there again")
    assert "load object" not in daemon.log.partition("applied in")[2]


def test_rights_of_a_pin_that_somebody_changes(world: World, start: Start) -> None:
    """The kernel tells it: no timer is waited for."""
    prepare(world, f"{NO_METRICS}\ndefaults: {{pin: {{group: 4711, mode: 0640}}}}")
    daemon = start(look_seconds=1000)
    before, path = world.everything(), world.pins / "counts"
    path.chmod(0o666)
    until(lambda: world.everything() == before, "it has not its mode again")
    os.chown(path, 0, 0)
    until(lambda: world.everything() == before, "it has not its group again")
    daemon.wait_log("healed: set owner root:4711, mode 0640 on map counts (was root:root 0640)")


def test_a_pin_of_somebody_else(world: World, start: Start) -> None:
    """It is told once, and what it stands in the way of comes back when it is gone."""
    prepare(world)
    daemon = start(look_seconds=0.2)
    before, path = world.everything(), world.pins / "counts"
    with kernel.holding(kernel.map_create(1, "counts", 4, 16, 16)) as fd:
        kernel.pin(fd, str(world.pins / "theirs"))
        os.chown(world.pins / "theirs", 1000, 1000)
        (world.pins / "theirs").rename(path)
    daemon.wait_log("belongs to user 1000, and was not opened")
    time.sleep(1)
    assert daemon.log.count(f"map counts: the pin {path} belongs to user 1000") == 1, daemon.log
    path.unlink()
    until(lambda: world.everything() == before, "the kept map is not pinned again")
    assert counted(world) == 3


def test_a_detached_link_is_attached_again(world: World, start: Start) -> None:
    """Nothing tells that a link was detached: the timer finds it."""
    prepare(world)
    daemon = start(look_seconds=0.2)
    map_id = world.map_id()
    detach_link(link_path(world))
    daemon.wait_log("healed: attach one/count")
    assert counted(world) == 3
    assert world.map_id() == map_id and len(world.link_ids()) == 1


def test_a_replaced_program_is_swapped_back(world: World, start: Start) -> None:
    prepare(world)
    world.put("two", STEP=5, MAP="others")
    daemon = start(look_seconds=0.2)
    (before,) = world.link_ids().values()
    replace_program(world)
    daemon.wait_log("healed: swap the program of one/count")
    until(lambda: list(world.link_ids().values()) == [before], "it is another program")
    assert counted(world) == 3


def replace_program(world: World) -> None:
    link = kernel.pinned(str(link_path(world)), kernel.PinKind.LINK)
    assert link is not None
    with (
        kernel.holding(link),
        kernel.open_object((world.directory / "two.bpf.o").read_bytes(), "two") as two,
    ):
        two.load()
        kernel.link_update(link, two.program_fd("count"))


def test_a_cgroup_that_comes_back_is_served_again(world: World, start: Start) -> None:
    prepare(world)
    start()
    map_id = world.map_id()
    for _ in range(3):
        world.cgroup.rmdir()
        time.sleep(0.2)
        world.cgroup.mkdir()
        inode = world.cgroup.stat().st_ino
        until(lambda: world.link_targets() == [inode], "the new cgroup is not served")  # noqa: B023
        assert counted(world) == 3
    assert world.map_id() == map_id


def test_a_cgroup_whose_parent_is_not_there_yet(world: World, start: Start) -> None:
    world.put("one")
    world.write(
        "objects: {one: {file: one.bpf.o, pin_maps: [counts],"
        " programs: {count: {attach: [{cgroup: CGROUP/a/b/c}]}}}}\n"
    )
    start()
    for path in ("a", "a/b", "a/b/c"):
        (world.cgroup / path).mkdir()
        time.sleep(0.15)
    inode = (world.cgroup / "a/b/c").stat().st_ino
    until(lambda: world.link_targets() == [inode], "the new cgroup is not served")


def write_interfaces(world: World, *targets: str, extra: str = NO_METRICS) -> None:
    attach = ", ".join(f"{{{target}}}" for target in targets)
    world.write(
        "objects: {one: {file: one.bpf.o, pin_maps: [counts],"
        f" programs: {{count: {{attach: [{attach}]}}}}}}}}\n{extra}\n"
    )


@pytest.mark.parametrize("hook", ["tcx/ingress", "xdp"])
def test_an_interface_that_comes_back_is_served_again(
    world: World, start: Start, netns: Netns, hook: str
) -> None:
    world.put("one", HOOK=f'"{hook}"', VERDICT=2 if hook == "xdp" else -1)
    write_interfaces(world, f"interface: veth0, netns: {netns.here}")
    start()
    map_id = world.map_id()
    ip("-n", netns.here, "link", "delete", "veth0")
    until(lambda: world.link_targets() == [0], "the interface is there")
    netns.join()
    index = interface_index(netns, "veth0")
    until(lambda: world.link_targets() == [index], "the new interface is not served")
    before = world.events()[0]
    netns.send(5)
    assert world.events()[0] >= before + 5
    assert world.map_id() == map_id


def add_veth(netns: Netns, name: str, peer: str) -> None:
    ip("-n", netns.here, "link", "add", name, "type", "veth", "peer", "name", peer)


def interface_index(netns: Netns, name: str) -> int:
    return kernel.interfaces(kernel.netns_path(netns.here))[name]


@contextmanager
def staying_in(netns: str) -> Iterator[None]:
    """A process that keeps a network namespace alive without its name."""
    with subprocess.Popen(
        ["ip", "netns", "exec", netns, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"x\n")
        process.stdin.flush()
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()
            process.wait()


@pytest.mark.parametrize("hook", ["tcx/ingress", "xdp"])
@pytest.mark.parametrize("running", [True, False], ids=["running", "started later"])
def test_another_namespace_under_the_same_name(
    world: World, start: Start, netns: Netns, hook: str, running: bool
) -> None:
    """Interfaces have the same index in both, and the former one is still alive."""
    world.put("one", HOOK=f'"{hook}"', VERDICT=2 if hook == "xdp" else -1)
    write_interfaces(world, f"interface: lo, netns: {netns.here}, mode: generic")
    if hook != "xdp":
        write_interfaces(world, f"interface: lo, netns: {netns.here}")
    daemon = start()
    with staying_in(netns.here):
        if not running:
            assert daemon.stop() == 0
        links = world.link_ids()
        ip("netns", "delete", netns.here)
        ip("netns", "add", netns.here)
        ip("-n", netns.here, "link", "set", "lo", "up")
        if not running:
            start()
        until(lambda: world.link_ids() and world.link_ids() != links, "nothing was attached")
        before = world.events()[0]
        with netns.inside(netns.here):
            send_datagrams(3)
        assert world.events()[0] >= before + 3, "the new namespace is not served"


def test_interfaces_that_match_a_pattern(world: World, start: Start, netns: Netns) -> None:
    put_tcx(world)
    write_interfaces(
        world, f'interface: "veth*", netns: {netns.here}', f"interface: veth0, netns: {netns.here}"
    )
    daemon = start()
    assert len(world.link_ids()) == 1, "the one that is there"
    for number in (1, 2):
        add_veth(netns, f"veth{number}", f"other{number}")
    until(lambda: len(world.link_ids()) == 3, "new interfaces are not served")
    assert set(world.link_targets()) == {interface_index(netns, f"veth{n}") for n in range(3)}
    ip("-n", netns.here, "link", "set", "veth1", "name", "eth1")
    until(lambda: len(world.link_ids()) == 2, "what matches no more is served still")
    ip("-n", netns.here, "link", "delete", "veth2")
    until(lambda: len(world.link_ids()) == 1, "something is left of what went away")
    daemon.wait_log("healed: detach one/count", 2)
    assert daemon.log.count("healed: detach one/count") == 2
    assert "NOT DONE" not in daemon.log and "drift:" not in daemon.log


def test_cgroups_that_match_a_pattern(world: World, start: Start) -> None:
    (world.cgroup / "web-0.service").mkdir()
    world.put("one")
    world.write(
        "objects: {one: {file: one.bpf.o, pin_maps: [counts], programs: {count: {attach:\n"
        '  [{cgroup: "CGROUP/web-*.service"}, {cgroup: "CGROUP/[ab]/?"}]}}}}\n'
    )
    start()
    assert len(world.link_ids()) == 1
    for path in ("web-1.service", "web.service", "a", "a/x", "a/xx", "c", "c/x"):
        (world.cgroup / path).mkdir()
    until(lambda: len(world.link_ids()) == 3, "new cgroups are not served")
    wanted = ("web-0.service", "web-1.service", "a/x")
    assert set(world.link_targets()) == {(world.cgroup / path).stat().st_ino for path in wanted}
    with inside_cgroup(world.cgroup / "a/x"):
        send_datagrams(3)
    assert world.events()[0] == 3
    (world.cgroup / "web-1.service").rmdir()
    until(lambda: len(world.link_ids()) == 2, "something is left of what went away")


def test_bpffs_that_is_unmounted_and_mounted_again(
    world: World, start: Start, kept: Callable[[], tuple[object, ...]]
) -> None:
    prepare(world)
    daemon = start()
    before = kept()
    assert counted(world) == 3
    subprocess.run(["umount", "-l", str(world.pins)], check=True)
    daemon.wait_log("is not on a bpffs")
    subprocess.run(["mount", "-t", "bpf", "bpf", str(world.pins)], check=True)
    until(lambda: world.map_id() and world.link_ids() and world.program_ids(), "nothing is pinned")
    assert kept() == before
    assert counted(world) == 3
    (world.pins / "counts").unlink()
    until(world.map_id, "the new bpffs is not watched")
    assert kept() == before


def test_another_map_under_the_pin(world: World, start: Start) -> None:
    """As on a reload: the programs move to it."""
    prepare(world)
    daemon = start()
    first = world.map_id()
    fd = kernel.map_create(1, "counts", 4, 16, 16)
    with kernel.holding(fd):
        (world.pins / "counts").unlink()
        kernel.pin(fd, str(world.pins / "counts"))
        other = kernel.map_info(fd).id
    until(lambda: "load object one" in daemon.log.partition("applied in")[2], "nothing is loaded")
    until(lambda: world.map_id() == other != first, "the map is another")
    assert counted(world) == 3


def test_without_healing_drift_is_only_reported(world: World, start: Start) -> None:
    prepare(world, extra=f"{METRICS}\nheal: false")
    daemon = start()
    before = world.everything()
    path = link_path(world)
    path.unlink()
    daemon.wait_log("drift: restore the pin of one/count")
    (world.pins / "counts").unlink()
    daemon.wait_log("drift from the manifest: map_pin_lost 1, attachment_pin_lost 1")
    assert world.map_id() is None and not world.link_ids()
    assert daemon.metrics()['bpfkeeper_drift{kind="map_pin_lost"}'] == 1
    assert daemon.reload().returncode == 0
    assert world.everything() == before


def test_files_of_now_are_left_to_a_reload(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    links = world.link_ids()
    world.put("one", STEP=100)
    child = world.cgroup / "child"
    child.mkdir()
    text = world.manifest_file.read_text()
    world.manifest_file.write_text(text.replace(str(world.cgroup), str(child)))
    link_path(world).unlink()
    until(world.link_ids, "the pin is not restored")
    assert world.link_ids() == links
    assert counted(world) == 3 and world.events() == (3, 3)
    # Other maps, so that the object has to be loaded again.
    fd = kernel.map_create(1, "counts", 4, 16, 16)
    with kernel.holding(fd):
        (world.pins / "counts").unlink()
        kernel.pin(fd, str(world.pins / "counts"))
    daemon.wait_log("object one has to be loaded again, and its file is another since: reload")
    assert world.link_ids() == links
    daemon.hup()
    assert world.link_targets() == [child.stat().st_ino]


def test_a_file_that_could_not_be_loaded_is_not_tried_again(world: World, start: Start) -> None:
    """What was loaded before goes on, and is healed."""
    prepare(world)
    daemon = start(look_seconds=0.2)
    shutil.copy(world.build("counter", REFUSED=1), world.directory / "one.bpf.o")
    daemon.hup()
    failures = daemon.log.count("FAILED") + daemon.log.count("rolled back")
    detach_link(link_path(world))
    daemon.wait_log("healed: attach one/count")
    assert counted(world) == 3
    assert daemon.log.count("FAILED") + daemon.log.count("rolled back") == failures


_FIGHT = """
import sys, time
from bpfkeeperd import kernel
from pathlib import Path
path, what = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, sys.argv[3])
from tests.machine import detach_link
print("fighting", flush=True)
while True:
    if what == "detach" and path.exists():
        detach_link(path)
    elif what == "unlink":
        path.unlink(missing_ok=True)
    time.sleep(0.1)
"""


@contextmanager
def fighting(path: Path, what: str) -> Iterator[None]:
    root = str(Path(__file__).parents[2])
    command = ["python3", "-c", _FIGHT, str(path), what, root]
    command[0] = os.sys.executable  # type: ignore[attr-defined]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("what", ["detach", "unlink"])
def test_a_fight_has_an_end(world: World, start: Start, what: str) -> None:
    """Meanwhile everything else is healed; a reload begins anew."""
    prepare(world, extra=METRICS)
    daemon = start(look_seconds=0.1, pace="first_seconds=0.1, longest_seconds=0.8, tries_max=5")
    path = link_path(world)
    healed = "healed: attach one/count" if what == "detach" else "healed: restore the pin of one"
    with fighting(path, what):
        until(lambda: daemon.log.count(healed) == 3, "it is not healed thrice")
        (world.pins / "counts").unlink()
        until(world.map_id, "the fight keeps the rest from being healed")
        daemon.wait_log("drifts again and again, or cannot be put right: it is left alone")
        assert daemon.log.count(healed) == 5
        until(lambda: daemon.metrics()["bpfkeeper_heal_given_up"] == 1, "it is not in the metrics")
        kind = "attachment_missing" if what == "detach" else "attachment_pin_lost"
        heals = f'bpfkeeper_heals_total{{kind="{kind}",result="ok"}}'
        assert daemon.metrics()[heals] == 5
        (world.pins / "counts").unlink()
        until(world.map_id, "the fight keeps the rest from being healed")
        time.sleep(0.5)
        assert daemon.log.count(healed) == 5 and daemon.log.count("left alone until") == 1
        daemon.hup()
        until(lambda: daemon.log.count(healed) > 5, "a reload does not begin anew")
        until(lambda: daemon.metrics()["bpfkeeper_heal_given_up"] == 0, "a reload forgets nothing")
    daemon.hup()
    until(lambda: counted(world) == 3, "not served after the fight")


def test_what_is_taken_keeps_no_other_from_being_served(
    world: World, start: Start, netns: Netns
) -> None:
    """An interface that somebody else's program holds is told, and served when it is free."""
    world.put("one", HOOK='"xdp"', VERDICT=2)
    write_interfaces(world, f'interface: "veth*", netns: {netns.here}')
    daemon = start()
    foreign = world.build("counter", HOOK='"xdp"', VERDICT=2, MAP="foreign")
    add_veth(netns, "taken", "other0")
    ip("-n", netns.here, "link", "set", "taken", "xdp", "obj", str(foreign), "sec", "xdp")
    ip("-n", netns.here, "link", "set", "taken", "name", "veth8")
    add_veth(netns, "veth9", "other1")
    daemon.wait_log("of somebody else is attached there (without a link), and nothing is changed")
    index = interface_index(netns, "veth9")
    until(lambda: index in world.link_targets(), "the free interface is not served")
    assert interface_index(netns, "veth8") not in world.link_targets()
    ip("-n", netns.here, "link", "set", "veth8", "xdp", "off")
    index = interface_index(netns, "veth8")
    until(lambda: index in world.link_targets(), "it is not served when it is free")


def test_what_fails_is_tried_again_later(world: World, start: Start, netns: Netns) -> None:
    """veth refuses XDP while its peer takes packets that are larger than a page."""
    world.put("one", HOOK='"xdp"', VERDICT=2)
    write_interfaces(world, f'interface: "veth*", netns: {netns.here}')
    daemon = start(pace="first_seconds=0.2")
    add_veth(netns, "large", "other0")
    ip("-n", netns.here, "link", "set", "other0", "mtu", "9000")
    ip("-n", netns.here, "link", "set", "large", "name", "veth8")
    add_veth(netns, "veth9", "other1")
    daemon.wait_log("cannot heal: attach one/count at xdp of interface:veth8")
    index = interface_index(netns, "veth9")
    until(lambda: index in world.link_targets(), "the free interface is not served")
    ip("-n", netns.here, "link", "set", "other0", "mtu", "1500")
    index = interface_index(netns, "veth8")
    until(lambda: index in world.link_targets(), "it is not tried again")


def test_nothing_happens_while_nothing_happens(world: World, start: Start, netns: Netns) -> None:
    """The daemon's own changes do not keep it busy."""
    put_tcx(world)
    write_interfaces(world, f'interface: "veth*", netns: {netns.here}')
    daemon = start()
    add_veth(netns, "veth1", "other1")
    until(lambda: len(world.link_ids()) == 2, "the new interface is not served")
    daemon.wait_idle()
    wakeups, ticks, log = daemon.wakeups(), daemon.cpu_ticks(), daemon.log
    time.sleep(2)
    assert daemon.wakeups() - wakeups <= 2 and daemon.cpu_ticks() - ticks <= 1
    assert daemon.log == log


VETHS = 200


def test_two_hundred_interfaces_at_once(world: World, start: Start, netns: Netns) -> None:
    world.put("one", HOOK='"xdp"', VERDICT=2)
    write_interfaces(world, f'interface: "veth*", netns: {netns.here}')
    daemon = start()
    add_veths(netns)
    until(lambda: len(world.link_ids()) == VETHS + 1, "not all are served")
    assert daemon.rss_bytes() < 60 << 20
    daemon.wait_log("healed: attach", VETHS)
    assert daemon.log.count("healed: attach") == VETHS
    ip("netns", "delete", netns.there)
    until(lambda: len(world.link_ids()) == 0, "something is left")
    until(lambda: not list(Path(world.layout.links).iterdir()), "a directory is left")


def add_veths(netns: Netns) -> None:
    """Interfaces of that many pairs, in one process."""
    lines = [
        f"link add veth{number} type veth peer name veth{number} netns {netns.there}\n"
        for number in range(1, VETHS + 1)
    ]
    command = ["ip", "-n", netns.here, "-batch", "-"]
    subprocess.run(command, input="".join(lines), text=True, check=True)
