"""Two maps under one name: the service manager kept one, and another is pinned."""

import json
import os
import signal
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.service import MessageId
from bpfkeeperd.steps import FAILPOINT_VARIABLE
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import NO_METRICS, DaemonProcess, cli
from tests.system.store import Store
from tests.system.test_fdstore import counted, prepare, store, told

__all__ = ["store"]


def put_other(world: World, name: str = "counts", value_size: int = 16) -> int:
    """Somebody else pins another map in the place of one; its ID."""
    path = world.pins / name
    path.unlink(missing_ok=True)
    fd = kernel.map_create(1, "counts", 4, value_size, 16)
    with kernel.holding(fd):
        kernel.pin(fd, str(path))
        return kernel.map_info(fd).id


@pytest.fixture
def conflict(world: World, start: Start, store: Store) -> tuple[DaemonProcess, int, int]:
    """A daemon that finds another map pinned than it kept; the IDs of both, the kept one first."""
    prepare(world)
    daemon = start(store=store)
    assert counted(world) == 3
    kept = world.map_id()
    assert kept
    daemon.kill()
    other = put_other(world)
    return start(store=store), kept, other


Conflict = tuple[DaemonProcess, int, int]


def check_refused(world: World, daemon: DaemonProcess, kept: int, other: int) -> None:
    daemon.wait_log(f"map counts: map ID {other} is pinned, but the service manager kept map ID")
    assert "object one: held back by map counts, see there" in daemon.log
    assert world.map_id() == other
    shown = cli(world, "status")
    assert shown.returncode == 1
    assert f"map ID {other} is pinned, but the service manager kept map ID {kept}" in " ".join(
        shown.stdout.split()
    )
    rows = json.loads(cli(world, "maps", "--json").stdout)
    assert [(row["id"], row["stored_id"]) for row in rows] == [(other, kept)]


def test_a_conflict_is_refused(world: World, store: Store, conflict: Conflict) -> None:
    daemon, kept, other = conflict
    check_refused(world, daemon, kept, other)
    assert store.map_ids() == {"counts": [kept]} and told(daemon) == []
    done = daemon.reload()
    assert done.returncode == 1 and "bpfkeeperd reload --wait --keep-pinned" in done.stdout
    assert "1 map kept" in daemon.notifications.having("READY")[-1]["STATUS"]
    assert "has a new ID" not in daemon.log


def test_a_pin_that_is_not_opened_decides_nothing(world: World, start: Start, store: Store) -> None:
    """Once it may be opened, the map under it is still another than was kept."""
    prepare(world)
    daemon = start(store=store)
    kept = world.map_id()
    assert kept
    daemon.kill()
    other = put_other(world)
    os.chown(world.pins / "counts", 1000, 0)
    daemon = start(store=store)
    daemon.wait_log("belongs to user 1000, and was not opened")
    os.chown(world.pins / "counts", 0, 0)
    assert daemon.reload().returncode == 1
    check_refused(world, daemon, kept, other)
    assert store.map_ids() == {"counts": [kept]}


def test_a_conflict_outlasts_restarts(
    world: World, start: Start, store: Store, conflict: Conflict
) -> None:
    daemon, kept, other = conflict
    for number in (signal.SIGKILL, signal.SIGTERM):
        daemon.signal(number)
        daemon.wait_exit()
        daemon = start(store=store)
        check_refused(world, daemon, kept, other)
        assert store.map_ids() == {"counts": [kept]}


def test_a_conflict_decided_for_the_pinned_one(
    world: World, start: Start, store: Store, conflict: Conflict
) -> None:
    daemon, kept, other = conflict
    done = daemon.reload("--keep-pinned")
    assert done.returncode == 0, done.stdout
    assert world.map_id() == other and store.map_ids() == {"counts": [other]}
    assert counted(world) == 3
    daemon.wait_log(f"map counts has a new ID: {kept} became {other} (replaced")
    assert cli(world, "status").returncode == 0
    daemon.stop()
    daemon = start(store=store)
    assert world.map_id() == other and told(daemon) == []


@pytest.mark.parametrize("restarted", [False, True])
def test_a_conflict_decided_for_the_kept_one(
    world: World, start: Start, store: Store, conflict: Conflict, restarted: bool
) -> None:
    daemon, kept, _ = conflict
    if restarted:
        daemon.stop()
    (world.pins / "counts").unlink()
    if restarted:
        daemon = start(store=store)
    world.wait(lambda: world.map_id() is not None)
    assert daemon.reload().returncode == 0
    assert (world.map_id(), world.events()[0]) == (kept, 3)
    assert counted(world) == 3 and store.map_ids() == {"counts": [kept]}
    assert cli(world, "status").returncode == 0
    assert "has a new ID" not in daemon.log


def test_apply_decides_no_conflict(
    world: World, start: Start, store: Store, conflict: Conflict
) -> None:
    """It has no descriptors, but knows of it; of another boot's it knows nothing."""
    daemon, kept, other = conflict
    daemon.stop()
    done = cli(world, "apply")
    assert done.returncode == 1
    assert f"map ID {other} is pinned, but the service manager kept map ID {kept}" in done.stdout
    daemon = start(store=store)
    check_refused(world, daemon, kept, other)
    assert store.map_ids() == {"counts": [kept]}
    daemon.stop()
    (state,) = Path(world.state_directory).glob("*.json")
    text = json.loads(state.read_text())
    text["boot_id"] = "another"
    state.write_text(json.dumps(text))
    assert "the service manager kept" not in cli(world, "plan").stdout


def test_what_apply_exchanged_is_no_conflict(world: World, start: Start, store: Store) -> None:
    prepare(world)
    start(store=store).kill()
    former = world.map_id()
    world.put("one", ENTRIES=32)
    world.write_counter("one", extra=f"{NO_METRICS}\nmaps: {{counts: {{on_mismatch: recreate}}}}")
    assert cli(world, "apply").returncode == 0
    applied = world.map_id()
    daemon = start(store=store)
    assert world.map_id() == applied != former
    assert store.map_ids() == {"counts": [applied]}
    assert "nothing done, 1 map kept" in daemon.notifications.having("READY")[0]["STATUS"]


@pytest.mark.parametrize("step", ["commit_map:1", "write_state:2"])
def test_what_a_killed_daemon_exchanged_is_no_conflict(
    world: World, start: Start, store: Store, step: str
) -> None:
    """Whether it had the time to write so or not."""
    prepare(world)
    daemon = start(store=store, variables={FAILPOINT_VARIABLE: step})
    world.put("one", ENTRIES=32)
    world.write_counter("one", extra=f"{NO_METRICS}\nmaps: {{counts: {{on_mismatch: recreate}}}}")
    daemon.signal(signal.SIGHUP)
    assert daemon.wait_exit() == -signal.SIGKILL
    daemon = start(store=store)
    daemon.wait_log("applied in ")
    assert "but the service manager kept" not in daemon.log
    assert store.map_ids() == {"counts": [world.map_id()]}
    assert counted(world) == 3


def test_an_object_that_cannot_be_read_decides_no_conflict(
    world: World, start: Start, store: Store
) -> None:
    """Another map is pinned, and nothing can be said yet of what the object wants."""
    prepare(world)
    path = world.directory / "one.bpf.o"
    good = path.read_bytes()
    start(store=store).kill()
    map_id = world.map_id()
    other = put_other(world)
    path.write_bytes(b"no object")
    daemon = start(store=store)
    assert world.map_id() == other and store.map_ids() == {"counts": [map_id]}
    path.write_bytes(good)
    assert daemon.reload().returncode == 1
    assert world.map_id() == other and store.map_ids() == {"counts": [map_id]}
    (world.pins / "counts").unlink()
    assert daemon.reload().returncode == 0
    assert world.map_id() == map_id and store.map_ids() == {"counts": [map_id]}


def test_the_journal_has_the_conflict(world: World, store: Store, conflict: Conflict) -> None:
    """Its entry can be looked for; `test_following.py` shows that fields get there."""
    assert len(set(MessageId)) == len(MessageId)
    assert Path(world.state_directory).exists()
    text = next(Path(world.state_directory).glob("*.json")).read_text()
    assert json.loads(text)["conflicts"] == {"counts": conflict[1]}
    assert json.loads(text)["maps"]["counts"]["id"] == conflict[1]
