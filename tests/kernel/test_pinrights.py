"""Who may open a kept map by its pin: as the manifest says, before anybody can find the pin."""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.errors import KernelError, ManifestError
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import Step
from tests.kernel.test_instruments import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_FOWNER,
    drop_capabilities,
    in_a_thread,
)
from tests.kernel.test_reload import plan_now
from tests.machine import map_id
from tests.scenario import World, refused

READERS = 4711
"""A group that this machine need not know."""


def rights(path: Path) -> Rights:
    found = path.lstat()
    return Rights(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))


def limits(world: World, pin: str = "", *, extra: str = "", name: str = "limits") -> None:
    """A manifest of one map of its own."""
    more = f", pin: {{{pin}}}" if pin else ""
    world.write(
        f"{extra}maps:\n  {name}: {{type: hash, key: u32, value: u64, max_entries: 4{more}}}\n"
    )


def apply(world: World) -> tuple[str, ...]:
    outcome = world.apply()
    assert outcome.result is ReloadResult.OK, outcome
    assert plan_now(world) == ()
    return outcome.done


def test_a_new_map(world: World) -> None:
    """Field by field: the map's own, then the default, then root alone."""
    world.put("one")
    world.write_counter(
        "one",
        extra=f"defaults: {{pin: {{group: {READERS}, mode: 0640}}}}\n"
        "maps:\n"
        "  counts: {pin: {mode: 660}}\n"
        "  tc/globals/own:\n"
        "    {type: hash, key: u32, value: u64, max_entries: 4, pin: {owner: daemon}}\n",
    )
    apply(world)
    assert rights(world.pins / "counts") == Rights(0, READERS, 0o660)
    assert rights(world.pins / "tc/globals/own") == Rights(1, READERS, 0o640)
    assert not os.path.exists(world.layout.made)


IN_ATTRIB, IN_MOVED_TO, IN_CREATE = 0x4, 0x80, 0x100


@contextmanager
def events_of(directory: Path) -> Iterator[Callable[[], list[tuple[int, str]]]]:
    """What came under a name, and which names got other rights: each call tells what is new."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    wanted = IN_ATTRIB | IN_MOVED_TO | IN_CREATE
    assert libc.inotify_add_watch(fd, os.fsencode(directory), wanted) > 0

    def read() -> list[tuple[int, str]]:
        found = []
        with suppress(BlockingIOError):
            data = os.read(fd, 1 << 16)
            while data:
                _, mask, _, size = struct.unpack_from("iIII", data)
                found.append((mask, data[16 : 16 + size].rstrip(b"\0").decode()))
                data = data[16 + size :]
        return found

    with kernel.holding(fd):
        yield read


def test_a_new_pin_is_never_seen_with_other_rights(world: World) -> None:
    """They do not change under its name, and where they do nobody else can look."""
    text = 'maps: {counts: {on_mismatch: recreate, pin: {group: 4711, mode: "0640"}}}'
    world.put("one")
    world.write_counter("one", extra=text)
    with world.keeper() as keeper, events_of(world.pins) as events:
        assert world.reload(keeper).result is ReloadResult.OK
        assert [found for found in events() if found[1] == "counts"] == [(IN_CREATE, "counts")]
        os.chmod(world.pins / "counts", 0o600)
        assert events() == [(IN_ATTRIB, "counts")]
        world.put("one", ENTRIES=32)
        assert world.reload(keeper).result is ReloadResult.OK
        assert events() == [(IN_MOVED_TO, "counts")]
        assert rights(world.pins / "counts") == Rights(0, READERS, 0o640)
        (world.pins / "counts").unlink()
        assert keeper.heal(1.0).actions
        assert events() == [(IN_CREATE, "counts")]
    assert rights(world.pins / "counts") == Rights(0, READERS, 0o640)
    assert stat.S_IMODE(os.stat(world.layout.own).st_mode) == 0o700


def test_a_map_that_is_there(world: World) -> None:
    limits(world)
    apply(world)
    before = map_id(world.pins / "limits")
    limits(world, f'owner: daemon, group: {READERS}, mode: "0640"')
    (line,) = apply(world)
    assert line == f"set owner daemon:{READERS}, mode 0640 on map limits (was root:root 0600)"
    assert rights(world.pins / "limits") == Rights(1, READERS, 0o640)
    limits(world, "mode: 600")
    (line,) = apply(world)
    assert (
        line == f"set owner daemon:{READERS}, mode 0600 on map limits (was daemon:{READERS} 0640)"
    )
    assert map_id(world.pins / "limits") == before


def test_no_group_gets_for_a_moment_what_it_is_not_to_have(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(world, f"group: {READERS}, mode: 666")
    apply(world)
    pin, before, given = world.pins / "limits", os.chown, list[Rights]()

    def chown(path: str, uid: int, gid: int) -> None:
        before(path, uid, gid)
        given.append(rights(pin))

    monkeypatch.setattr(os, "chown", chown)
    limits(world, f"group: {READERS + 1}, mode: 604")
    apply(world)
    assert given == [Rights(0, READERS + 1, 0o604)]


def test_without_options_rights_are_nobodys_business(world: World) -> None:
    limits(world)
    with world.keeper() as keeper:
        world.reload(keeper)
        os.chmod(world.pins / "limits", 0o666)
        os.chown(world.pins / "limits", 0, READERS)
        assert world.reload(keeper).done == ()
        assert keeper.heal(1.0).actions == ()
        assert not any(keeper.status.drift.values())
    assert rights(world.pins / "limits") == Rights(0, READERS, 0o666)


def test_a_recreated_map(world: World) -> None:
    """What the manifest says wins; what it does not say is as of the former pin."""
    world.put("one")
    extra = "maps: {counts: {on_mismatch: recreate, pin: {mode: 0640}}}"
    world.write_counter("one", extra=extra)
    apply(world)
    os.chown(world.pins / "counts", 0, READERS)
    world.put("one", ENTRIES=32)
    world.write_counter("one", extra=extra.replace("0640", "0660"))
    before = map_id(world.pins / "counts")
    apply(world)
    assert map_id(world.pins / "counts") != before
    assert rights(world.pins / "counts") == Rights(0, READERS, 0o660)


def test_a_renamed_map(world: World) -> None:
    limits(world)
    apply(world)
    number = map_id(world.pins / "limits")
    limits(world, "mode: 0640", name="bounds")
    text = world.manifest_file.read_text().replace("{type", "{rename_from: limits, type")
    world.manifest_file.write_text(text)
    done = apply(world)
    assert [line.split()[0] for line in done] == ["rename", "set"], done
    assert map_id(world.pins / "bounds") == number
    assert rights(world.pins / "bounds") == Rights(0, 0, 0o640)


def test_a_restored_pin(world: World) -> None:
    limits(world, f"group: {READERS}, mode: 0640")
    with world.keeper() as keeper:
        world.reload(keeper)
        number = map_id(world.pins / "limits")
        (world.pins / "limits").unlink()
        assert [action.done for action in keeper.heal(1.0).actions] == [True]
        assert map_id(world.pins / "limits") == number
        assert rights(world.pins / "limits") == Rights(0, READERS, 0o640)
        assert keeper.heal(100.0).actions == ()


def test_a_pin_that_cannot_be_given_away_is_restored_for_root_alone(world: World) -> None:
    limits(world, f"group: {READERS}, mode: 0640")
    with world.keeper() as keeper:
        world.reload(keeper)
        number = map_id(world.pins / "limits")
        (world.pins / "limits").unlink()

        def restored() -> None:
            drop_capabilities(CAP_CHOWN, CAP_FOWNER)
            report = keeper.heal(1.0)
            assert [action.done for action in report.actions] == [False]
            assert "it takes CAP_CHOWN" in str(report), report

        in_a_thread(restored)
        assert map_id(world.pins / "limits") == number
        assert rights(world.pins / "limits") == Rights(0, 0, 0o600)
        keeper.heal(100.0)
        assert rights(world.pins / "limits") == Rights(0, READERS, 0o640)


def test_changed_rights_are_drift(world: World) -> None:
    limits(world, "mode: 0640")
    with world.keeper() as keeper:
        world.reload(keeper)
        os.chmod(world.pins / "limits", 0o666)
        keeper.look()
        assert keeper.status.drift["map_pin_rights"] == 1
        (found,) = keeper.status.differences
        assert found.text == "set owner root:root, mode 0640 on map limits (was root:root 0666)"
        assert [action.done for action in keeper.heal(1.0).actions] == [True]
        assert not any(keeper.status.drift.values())
    assert rights(world.pins / "limits") == Rights(0, 0, 0o640)


def test_rights_are_put_back_with_the_rest(world: World) -> None:
    """A version that does no good undoes the whole reload."""
    world.put("one")
    health = "health: {seconds: 1, moves: runs}, "
    world.write_counter("one")
    apply(world)
    before = world.everything()
    world.put("one", STEP=2)
    text = "maps: {counts: {pin: {mode: 0644}}}"
    world.write_counter("one", extra=text)
    manifest = world.manifest_file.read_text().replace("{count: {", f"{{count: {{{health}")
    world.manifest_file.write_text(manifest)
    assert world.apply().rolled_back  # nothing runs it
    assert world.everything() == before


def test_a_pin_that_changes_meanwhile_is_left_alone(world: World) -> None:
    limits(world)
    apply(world)

    def on_step(step: Step, subject: object) -> None:
        if step is Step.SET_RIGHTS:
            os.chmod(world.pins / "limits", 0o644)

    limits(world, "mode: 0640")
    with world.keeper(on_step) as keeper:
        assert "was changed while the reload went on" in refused(world.reload(keeper))


def test_a_user_that_is_not_there(world: World) -> None:
    limits(world, "owner: nobody-of-that-name")
    place = f"{world.manifest_file}:4:68: there is no user nobody-of-that-name on this machine"
    with pytest.raises(ManifestError, match=place):
        world.apply()
    limits(world)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        limits(world, "group: none-of-that-name")
        assert world.reload(keeper).result is ReloadResult.REJECTED


@pytest.mark.parametrize("there", [True, False])
def test_a_keeper_does_not_shut_itself_out(world: World, there: bool) -> None:
    """Without the capability to open what is not its own, it gives nothing away."""
    limits(world)
    if there:
        apply(world)
    before = world.everything()

    def given_away() -> None:
        drop_capabilities(CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)
        limits(world, "owner: 1000")
        text = refused(world.apply())
        assert "cannot give away the pin" in text and "CAP_DAC_OVERRIDE" in text, text

    in_a_thread(given_away)
    assert world.everything() == before


def test_a_recreated_map_is_not_given_away_unasked_either(world: World) -> None:
    text = "defaults: {on_mismatch: recreate}\n"
    limits(world, extra=text)
    apply(world)
    before = world.everything()

    def given_away() -> None:
        drop_capabilities(CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)
        limits(world, "owner: 1000", extra=text)
        manifest = world.manifest_file.read_text()
        world.manifest_file.write_text(manifest.replace("max_entries: 4", "max_entries: 8"))
        assert "cannot give away the pin" in refused(world.apply())

    in_a_thread(given_away)
    assert world.everything() == before


def test_a_pin_that_is_exchanged_after_the_look_is_not_used(world: World) -> None:
    """A keeper that starts has no descriptor of it yet."""
    world.put("one")
    world.write_counter("one")
    apply(world)
    world.put("one", STEP=2)

    def exchange(step: Step, _: object) -> None:
        if step is Step.LOAD_OBJECT:
            (world.pins / "counts").unlink()
            plant(world.pins / "counts", owner=0)

    with world.keeper(exchange) as keeper:
        text = refused(world.reload(keeper))
    assert "map counts was exchanged while the reload went on: reload again" in text


# ---- pins of others ----


def plant(path: Path, owner: int = 1000) -> int:
    """Somebody's map at a path; returns its ID."""
    with kernel.holding(kernel.map_create(1, "limits", 4, 8, 4)) as fd:
        kernel.pin(fd, str(path))
        os.chown(path, owner, owner)
        return kernel.map_info(fd).id


TWO = (
    "objects:\n"
    "  one: {file: one.bpf.o, pin_maps: [ones], programs: {count: {attach: [{cgroup: CGROUP}]}}}\n"
    "  two: {file: two.bpf.o, pin_maps: [twos], programs: {count: {attach: [{cgroup: CGROUP}]}}}\n"
)


def test_the_pin_of_somebody_else_is_not_adopted(world: World) -> None:
    """What uses the map is held back, the rest goes ahead; root's word makes it ours."""
    world.put("one", MAP="ones")
    world.put("two", MAP="twos")
    world.write(TWO)
    path = world.pins / "ones"
    number = plant(path)
    outcome = world.apply()
    assert outcome.result is ReloadResult.FAILED and not outcome.failures
    assert outcome.refusals[0] == (
        f"map ones: the pin {path} belongs to user 1000, and was not opened: chown root {path} if"
        " it is to be trusted, name its owner in the manifest (pin: owner), or remove it"
    )
    assert outcome.refusals[1:] == ("object one: held back by map ones, see there",)
    assert {path.partition("/")[0] for path in world.link_ids()} == {"two"}
    path.unlink()
    assert world.apply().result is ReloadResult.OK
    limits(world)
    number = plant(world.pins / "limits", 65534)
    assert "user 65534 (nobody, or one that this user namespace does not know)" in refused(
        world.apply()
    )
    os.chown(world.pins / "limits", 0, 0)
    apply(world)
    assert map_id(world.pins / "limits") == number


def test_a_symbolic_link_is_not_followed(world: World) -> None:
    """Root's or not."""
    plant(world.pins / "elsewhere", 0)
    (world.pins / "limits").symlink_to(world.pins / "elsewhere")
    limits(world)
    path = world.pins / "limits"
    why = f"map limits: {path} is a symbolic link, which is not followed: remove it"
    assert why in refused(world.apply())
    assert path.is_symlink()


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o1777])
@pytest.mark.parametrize("owner", [0, 1000])
@pytest.mark.parametrize("depth", ["tc", "tc/globals"])
def test_directories_on_the_way(world: World, depth: str, owner: int, mode: int) -> None:
    """Who owns one, or everybody, could put another pin there."""
    directory = world.pins / depth
    (world.pins / "tc/globals").mkdir(parents=True)
    number = plant(world.pins / "tc/globals/acl", 0)
    os.chown(directory, owner, 0)
    directory.chmod(mode)
    limits(world, name="tc/globals/acl")
    if owner == 0 and mode != 0o777:
        apply(world)
        assert map_id(world.pins / "tc/globals/acl") == number
        return
    text = refused(world.apply())
    if owner:
        assert f"the directory {directory} belongs to user 1000" in text
        assert f"chown root {directory} if it is to be trusted" in text
    else:
        assert f"everybody can exchange what is in {directory}: chmod o-w {directory}" in text


def test_a_linked_directory_is_not_followed(world: World) -> None:
    (world.pins / "tc").mkdir()
    plant(world.pins / "tc/acl", 0)
    (world.pins / "xdp").symlink_to("tc")
    limits(world, name="xdp/acl")
    assert f"{world.pins}/xdp is a symbolic link" in refused(world.apply())


@pytest.mark.parametrize("linked", [False, True])
def test_a_directory_that_is_planted_during_a_reload(world: World, linked: bool) -> None:
    """In a pin root for everybody: the map is not pinned where somebody else could exchange it,
    what is there is left alone, and the reload is no success."""
    world.pins.chmod(0o1777)
    planted, elsewhere = world.pins / "tc", world.pins / "elsewhere"
    elsewhere.mkdir()

    def plant_it(step: Step, subject: object) -> None:
        if step is Step.PIN_MAP and not planted.is_symlink():
            planted.symlink_to(elsewhere) if linked else planted.mkdir()
            os.chown(planted, 0 if linked else 1000, -1, follow_symlinks=False)

    limits(world, name="tc/globals/acl")
    with world.keeper(plant_it) as keeper:
        outcome = world.reload(keeper)
        assert f"cannot pin in {planted}: somebody else has put it there" in refused(outcome)
        assert not list(elsewhere.iterdir()) and not list(planted.iterdir())
        assert str(planted) in refused(world.reload(keeper))
    assert planted.is_symlink() is linked


def test_what_is_to_be_renamed(world: World) -> None:
    plant(world.pins / "former")
    limits(world)
    text = world.manifest_file.read_text().replace("{type", "{rename_from: former, type")
    world.manifest_file.write_text(text)
    assert f"the pin {world.pins}/former belongs to user 1000" in refused(world.apply())
    assert not (world.pins / "limits").exists()


def test_owners_that_the_manifest_names_or_named(world: World) -> None:
    """Of a pin that was given away before, by this manifest or another."""
    path = world.pins / "limits"
    number = plant(path, 1000)
    limits(world, "owner: 1000")
    apply(world)
    limits(world, "owner: 1001")
    apply(world)
    assert rights(path).uid == 1001
    limits(world)
    assert apply(world) == ()
    assert (map_id(path), rights(path).uid) == (number, 1001)
    os.chown(path, 1000, 1000)  # it is not his any more
    assert "belongs to user 1000" in refused(world.apply())
    os.chown(path, 0, 0)
    apply(world)
    os.chown(path, 1001, 0)  # nor his
    assert "belongs to user 1001" in refused(world.apply())


def test_one_that_is_planted_while_the_keeper_runs(world: World) -> None:
    """The kept map stays held, and comes back when the other one is gone."""
    limits(world)
    with world.keeper() as keeper:
        world.reload(keeper)
        number = map_id(world.pins / "limits")
        (world.pins / "limits").unlink()
        plant(world.pins / "limits")
        assert keeper.heal(1.0).actions == ()
        assert keeper.status.drift["map_differs"] == 1
        assert "belongs to user 1000" in keeper.status.maps[0].problem
        assert "belongs to user 1000" in refused(world.reload(keeper))
        (world.pins / "limits").unlink()
        keeper.heal(100.0)
        assert map_id(world.pins / "limits") == number


# ---- readers ----


def read_as(directory: Path, name: str, uid: int, gid: int) -> int:
    """The errno of opening a map for reading in a process of that user and group alone, without
    any capability, which needs no way to the directory; 0: it could be read."""
    way = os.open(directory, os.O_PATH)
    child = os.fork()
    if child == 0:
        result = 255
        try:
            os.fchdir(way)
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            try:
                fd = kernel.pinned_for_reading(name)
                assert fd is not None
                kernel.map_lookup(fd, bytes(4), 16)
                result = 0
            except KernelError as error:
                result = error.errno
        finally:
            os._exit(result)
    os.close(way)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_reader_without_capabilities(world: World) -> None:
    """A process of the group opens the map by its pin, also the one that a reload put there."""
    world.pins.chmod(0o711)
    world.put("one")
    shared = "pin: {group: 4711, mode: 0640}"
    extra = "maps: {counts: {on_mismatch: recreate}}"
    world.write_counter("one", extra=extra)
    with world.keeper() as keeper:
        world.reload(keeper)
        assert read_as(world.pins, "counts", 1000, READERS) == errno.EACCES
        world.write_counter("one", extra=extra.replace("recreate", f"recreate, {shared}"))
        assert world.reload(keeper).result is ReloadResult.OK
        found = read_as(world.pins, "counts", 1000, READERS)
        if found == errno.EPERM:
            pytest.skip("before Linux 5.19 bpf(2) takes CAP_BPF where others may not use it")
        assert found == 0
        before = map_id(world.pins / "counts")
        world.put("one", ENTRIES=32)
        assert world.reload(keeper).result is ReloadResult.OK
        assert map_id(world.pins / "counts") != before
        assert read_as(world.pins, "counts", 1000, READERS) == 0
        assert read_as(world.pins, "counts", 1000, READERS + 1) == errno.EACCES
        world.pins.chmod(0o700)
        # The directory was opened before, and has to be gone through all the same.
        assert read_as(world.pins, "counts", 1000, READERS) == errno.EACCES
