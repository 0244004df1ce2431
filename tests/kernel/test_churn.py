"""Which map IDs changed and why, by whoever, whether or not a keeper was there to see it."""

import json
import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.churn import IdChange, MapRecord, Memory
from bpfkeeperd.errors import BusyError
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import MapIdChange, MapStatus, ReloadResult
from bpfkeeperd.statefile import read_state, state_path
from bpfkeeperd.steps import Step
from tests.kernel.test_health import MOVES, keeping
from tests.kernel.test_health import write as write_health
from tests.machine import bpf_object
from tests.scenario import World, garbage, refused

RECREATE = "maps: {counts: {on_mismatch: recreate}}"
LOST, REPLACED, REBOOT = MapIdChange.LOST, MapIdChange.REPLACED, MapIdChange.REBOOT
RECREATED, RENEWED = MapIdChange.RECREATED, MapIdChange.RENEWED


def begin(world: World, **macros: int) -> None:
    world.put("one", "counter", **macros)
    world.write_counter("one", extra=RECREATE)


def good(world: World, keeper: Keeper | None = None) -> None:
    outcome = world.reload(keeper) if keeper else world.apply()
    assert outcome.result is ReloadResult.OK, outcome


def state_file(world: World) -> Path:
    return Path(state_path(world.state_directory, str(world.pins)))


def memory_of(world: World) -> Memory:
    memory, note = read_state(str(state_file(world)))
    assert not note
    return memory


def record_of(world: World, name: str = "counts") -> MapRecord:
    return memory_of(world).maps[name]


def status_of(keeper: Keeper, name: str = "counts") -> MapStatus:
    (found,) = (found for found in keeper.status.maps if found.name == name)
    return found


def replace_pin(world: World, name: str = "counts", entries: int = 16) -> int:
    """Somebody pins a map of his own under a name; its ID."""
    (world.pins / name).unlink(missing_ok=True)
    with kernel.holding(kernel.map_create(1, name, 4, 16, entries)) as fd:
        kernel.pin(fd, str(world.pins / name))
        return kernel.map_info(fd).id


def marks(world: World) -> list[Path]:
    return world.layout_files("made")


def reasons(world: World) -> list[MapIdChange]:
    return [change.reason for change in world.changes]


def gone(map_id: int) -> bool:
    fd = kernel.map_by_id(map_id)
    if fd is None:
        return True
    os.close(fd)
    return False


def test_what_is_remembered_of_a_map(world: World) -> None:
    begin(world)
    before = time.time()
    with world.keeper() as keeper:
        good(world, keeper)
        found = status_of(keeper)
        assert (found.path, found.made, found.flags) == (f"{world.pins}/counts", True, 0)
        assert found.last_change is None and found.changes == {}
        first = record_of(world)
        assert first.made and before <= first.since <= time.time()
        old = world.map_id()
        world.put("one", ENTRIES=32)
        good(world, keeper)
        last = status_of(keeper).last_change
        assert last and (last.reason, last.old_id) == (RECREATED, old)
        assert first.since < last.at <= time.time()
        assert status_of(keeper).made
    record = record_of(world)
    assert (record.id, record.since, record.last_change) == (world.map_id(), last.at, last)
    with world.keeper() as keeper:
        good(world, keeper)
        assert status_of(keeper).last_change == last, "it comes back with the state file"
    assert reasons(world) == [RECREATED]
    assert not marks(world)


def test_replaced_while_nobody_looks(world: World) -> None:
    begin(world)
    good(world)
    old = world.map_id()
    replace_pin(world)
    new = replace_pin(world)  # what was in between nobody saw
    with world.keeper() as keeper:
        good(world, keeper)
        assert not status_of(keeper).made
        assert status_of(keeper).changes == {REPLACED: 1}
        first = replace_pin(world)
        second = replace_pin(world)
        assert [str(change) for change in keeper.look()] == [
            f"map counts has a new ID: {new} became {second} (replaced)"
        ]
        assert first != second and keeper.look() == ()
    assert list(map(str, world.changes)) == [
        f"map counts has a new ID: {old} became {new} (replaced, while no daemon ran)"
    ]
    assert record_of(world).changes == {REPLACED: 2}


def test_replaced_and_then_recreated_is_two_changes(world: World) -> None:
    """Also where both are found by one reload: the map of somebody else was there."""
    begin(world)
    with world.keeper() as keeper:
        good(world, keeper)
        old = record_of(world).id
        foreign = replace_pin(world, entries=64)
        good(world, keeper)
        new = record_of(world).id
        assert new == world.map_id()
        assert world.changes == [
            IdChange("counts", old, foreign, REPLACED),
            IdChange("counts", foreign, new, RECREATED),
        ]
        assert status_of(keeper).changes == {REPLACED: 1, RECREATED: 1}
        assert status_of(keeper).made


def test_a_change_that_was_seen_is_told_after_a_failure(world: World) -> None:
    """A reload sees it, and then cannot go on."""
    begin(world)

    def fail(step: Step, subject: object) -> None:
        if failing and step is Step.SWEEP_STAGING:
            raise OSError(5, "Input/output error", "it")

    failing = False
    with world.keeper(fail) as keeper:
        good(world, keeper)
        new = replace_pin(world)
        os.mkdir(world.layout.staging)
        failing = True
        assert "Input/output error" in refused(world.reload(keeper))
        assert [change.new for change in world.changes] == [new]
        assert record_of(world).changes == {REPLACED: 1}, "and it is written"
        failing = False
        good(world, keeper)
        assert len(world.changes) == 1


def test_lost_while_nobody_looks(world: World) -> None:
    begin(world, UNUSED=1)
    good(world)
    old = world.map_id()
    (world.pins / "counts").unlink()
    good(world)
    assert list(map(str, world.changes)) == [
        f"map counts has a new ID: {old} became {world.map_id()} (lost, while no daemon ran)"
    ]
    assert record_of(world).made
    (world.pins / "counts").unlink()
    replace_pin(world)
    good(world)
    assert reasons(world) == [LOST, REPLACED], "somebody was faster than the keeper"
    assert not record_of(world).made


def test_a_pin_that_is_restored_is_no_change(world: World) -> None:
    begin(world)
    replace_pin(world)
    with world.keeper() as keeper:
        good(world, keeper)
        assert not status_of(keeper).made, "somebody else made it"
        (world.pins / "counts").unlink()
        good(world, keeper)
        assert status_of(keeper).made, "this one is the keeper's"
    assert not world.changes and not marks(world)
    assert record_of(world).made


def test_bpffs_mounted_anew(world: World) -> None:
    begin(world)

    def mount_anew() -> None:
        subprocess.run(["umount", "-l", str(world.pins)], check=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", str(world.pins)], check=True)

    with world.keeper() as keeper:
        good(world, keeper)
        mount_anew()
        good(world, keeper)
        assert not world.changes, "it was held"
    old = world.map_id()
    assert old
    mount_anew()
    world.wait(lambda: gone(old))  # the link goes a while after its pin
    good(world)
    assert [(change.reason, change.when) for change in world.changes] == [
        (LOST, "while no daemon ran")
    ]


def test_a_name_that_leaves_the_manifest_and_comes_back(world: World) -> None:
    begin(world)
    with world.keeper() as keeper:
        good(world, keeper)
        for replaced in (False, True):
            world.write("objects: {}\n")
            good(world, keeper)
            if replaced:
                replace_pin(world)
            assert keeper.look() == (), "it is not watched"
            world.write_counter("one", extra=RECREATE)
            good(world, keeper)
            assert reasons(world) == [REPLACED] * replaced
    assert record_of(world).changes == {REPLACED: 1}


def test_a_rename_takes_the_counts_along(world: World) -> None:
    begin(world)
    good(world)
    replace_pin(world)
    good(world)
    before = record_of(world)
    text = world.manifest_file.read_text()
    text = text.replace(RECREATE, "maps: {flows: {rename_from: counts}}")
    world.manifest_file.write_text(text.replace("[counts]", "{counts: flows}"))
    with world.keeper() as keeper:
        good(world, keeper)
        found = status_of(keeper, "flows")
        assert found.path == f"{world.pins}/flows"
        assert (found.changes, found.last_change) == (before.changes, before.last_change)
    assert memory_of(world).maps == {"flows": before}
    assert reasons(world) == [REPLACED]


@pytest.mark.parametrize("known", [True, False], ids=["was good", "never was"])
def test_a_map_of_an_object_that_cannot_be_read(world: World, known: bool) -> None:
    """It is watched all the same."""
    begin(world)
    good(world)
    with world.keeper() as keeper:
        if known:
            good(world, keeper)
        garbage(world.directory / "one.bpf.o")
        refused(world.reload(keeper))
        new = replace_pin(world)
        (change,) = keeper.look()
        assert (change.new, change.reason) == (new, REPLACED)
        found = status_of(keeper)
        assert (found.id, found.changes, found.made) == (new, {REPLACED: 1}, False)
        assert found.last_change and found.path == f"{world.pins}/counts"


@pytest.mark.parametrize("text", [None, "{half", '{"format": 2}'])
def test_a_state_file_that_is_gone(world: World, text: str | None) -> None:
    begin(world)
    good(world)
    state_file(world).unlink()
    if text:
        state_file(world).write_text(text)
    with world.keeper() as keeper:
        assert bool(keeper.notes) == bool(text)
        good(world, keeper)
        assert status_of(keeper).changes == {} and not status_of(keeper).made
        state_file(world).unlink()
        replace_pin(world)
        assert len(keeper.look()) == 1
    assert not world.changes
    assert record_of(world).changes == {REPLACED: 1}, "it is written anew, whole"


@pytest.mark.parametrize("pinned", [True, False])
def test_a_reboot_is_one_change_of_each_map(world: World, pinned: bool) -> None:
    """The same number in another boot is another map."""
    begin(world, UNUSED=1)
    good(world)
    data = json.loads(state_file(world).read_text())
    state_file(world).write_text(json.dumps(data | {"boot_id": "another"}))
    old = world.map_id()
    if not pinned:
        (world.pins / "counts").unlink()
    for _ in range(2):
        good(world)
    assert world.changes == [IdChange("counts", old or 0, world.map_id() or 0, REBOOT)]
    assert record_of(world).changes == {REBOOT: 1}
    assert record_of(world).made is not pinned
    last = world.map_id() or 0
    (world.pins / "counts").unlink()
    world.wait(lambda: bpf_object("map", last) is None)  # the kernel lets go of it in its time
    good(world)
    assert reasons(world) == [REBOOT, LOST]


def test_a_trial_that_is_rolled_back_changes_no_id(world: World) -> None:
    """The former map came back before the keeper looked."""
    policy = "maps: {seen: {on_mismatch: recreate}}\n"
    world.put("one", "health")
    write_health(world, f"seconds: 1, {MOVES['a member']}", maps=policy)
    with keeping(world) as keeper:
        good(world, keeper)
        before = memory_of(world)
        world.put("one", "health", MUTE=1, ENTRIES=2)
        assert "rolled back" in refused(world.reload(keeper))
        assert memory_of(world).maps == before.maps
        assert keeper.look() == () and world.map_id("seen") == before.maps["seen"].id
    assert not world.changes and not marks(world)


def test_a_failed_change_leaves_no_mark(world: World) -> None:
    begin(world)

    def fail(step: Step, subject: object) -> None:
        if step is Step.COMMIT_MAP:
            left.append(len(marks(world)))
            raise OSError(5, "Input/output error", "it")

    left: list[int] = []
    with world.keeper(fail) as keeper:
        good(world, keeper)
        world.put("one", ENTRIES=32)
        refused(world.reload(keeper))
        assert left == [1] and not marks(world)
        assert not os.path.exists(world.layout.made)
        assert status_of(keeper).made
    assert not world.changes


class Killed(BaseException):
    """What nothing comes after."""


def test_the_maker_of_a_new_pin_is_known_after_two_deaths(world: World) -> None:
    """The second keeper dies, too, when it has read the mark."""
    begin(world)

    def die(step: Step, subject: object) -> None:
        if step is at:
            raise Killed

    for at, left in ((Step.WRITE_STATE, 1), (Step.LOAD_OBJECT, 0)):  # noqa: B007
        with pytest.raises(Killed), world.keeper(die) as keeper:
            keeper.reload(force=True)
        assert len(marks(world)) == left
    assert record_of(world).made
    good(world)
    assert record_of(world).made and not world.changes


def test_an_interrupted_change_leaves_no_mark(world: World) -> None:
    begin(world)
    good(world)

    def interrupt(step: Step, subject: object) -> None:
        if step is Step.COMMIT_MAP:
            raise KeyboardInterrupt

    world.put("one", ENTRIES=32)
    with pytest.raises(KeyboardInterrupt), world.keeper(interrupt) as keeper:
        keeper.reload()
    assert not marks(world)


def test_a_map_that_is_not_renamed_yet_is_followed_where_it_is(world: World) -> None:
    begin(world)
    good(world)
    text = world.manifest_file.read_text()
    text = text.replace(RECREATE, "maps: {flows: {rename_from: counts}}")
    world.manifest_file.write_text(text.replace("[counts]", "{counts: flows}"))
    world.put("one", ENTRIES=32)  # which is why it is not
    with world.keeper() as keeper:
        refused(world.reload(keeper))
        new = replace_pin(world)
        (change,) = keeper.look()
        assert (change.name, change.new, change.reason) == ("counts", new, REPLACED)
        found = status_of(keeper, "flows")
        assert (found.id, found.path) == (new, f"{world.pins}/counts")
        assert found.changes == {REPLACED: 1}
    assert set(memory_of(world).maps) == {"counts"}


def test_a_state_file_that_cannot_be_written_is_tried_again(world: World) -> None:
    begin(world)
    with world.keeper() as keeper:
        good(world, keeper)
        path = state_file(world)
        os.mkdir(f"{path}.new")
        world.put("one", ENTRIES=32)
        outcome = world.reload(keeper)
        assert any("cannot write the state file" in note for note in outcome.notes)
        assert status_of(keeper).changes == {RECREATED: 1}
        assert record_of(world).changes == {}
        os.rmdir(f"{path}.new")
        assert keeper.look() == ()
    assert record_of(world).changes == {RECREATED: 1}


def test_a_state_file_that_could_not_be_written_by_the_one_who_did_it(world: World) -> None:
    """What was done, and by whom, is still told by the marks."""
    begin(world)
    with world.keeper() as keeper:
        good(world, keeper)
        path = state_file(world)
        os.mkdir(f"{path}.new")
        for entries in (32, 48):
            world.put("one", ENTRIES=entries)
            outcome = world.reload(keeper)
            assert outcome.result is ReloadResult.OK and outcome.notes
    os.rmdir(f"{path}.new")
    assert record_of(world).changes == {}
    good(world)
    assert record_of(world).changes == {RECREATED: 1} and record_of(world).made
    assert not marks(world)


def test_two_keepers_never_write_one_state_file(world: World) -> None:
    """The second has a bpffs, and the lock of a pin root, of its own at the same path."""
    begin(world)
    with world.keeper() as keeper:
        good(world, keeper)
        subprocess.run(["umount", "-l", str(world.pins)], check=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", str(world.pins)], check=True)
        with pytest.raises(BusyError, match="another keeper writes the state file"):
            world.apply()
        good(world, keeper)
    good(world)
    assert not world.changes


def test_the_boot_is_that_of_the_kernel(tmp_path: Path) -> None:
    """Not of a container, of which not everybody sees the file."""
    seen = kernel.boot_id.__wrapped__()
    place = "/proc/sys/kernel/random/boot_id"
    assert Path(place).read_text().strip() == seen
    container = tmp_path / "boot_id"
    container.write_text(f"{uuid.uuid4()}\n")
    subprocess.run(["mount", "--bind", str(container), place], check=True)
    try:
        assert Path(place).read_text() == container.read_text()
        assert kernel.boot_id.__wrapped__() == seen
    finally:
        subprocess.run(["umount", place], check=True)
