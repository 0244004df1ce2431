"""What is counted of map IDs survives the daemon, however it ends."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.churn import Memory
from bpfkeeperd.state import MapIdChange
from bpfkeeperd.statefile import read_state, state_path
from bpfkeeperd.steps import FAILPOINT_VARIABLE, Step
from tests.machine import map_id
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import METRICS, NO_METRICS, DaemonProcess, cli

LOST, REPLACED = MapIdChange.LOST, MapIdChange.REPLACED
RECREATED, RENEWED = MapIdChange.RECREATED, MapIdChange.RENEWED

FIRST = """
maps:
  counts: {on_mismatch: recreate}
  limits: {type: hash, key: u32, value: u64, max_entries: 4}
  gone: {type: hash, key: u32, value: u64, max_entries: 4}
objects:
  one: {file: one.bpf.o, pin_maps: [counts]}
  six: {file: six.bpf.o, pin_maps: {.bss: zeroed}}
  nine: {file: nine.bpf.o, pin_maps: {.bss: data}}
"""
SECOND = """
maps:
  counts: {on_mismatch: recreate}
  bounds: {type: hash, key: u32, value: u64, max_entries: 4, rename_from: limits}
  gone: {type: hash, key: u32, value: u64, max_entries: 4}
  more: {type: hash, key: u32, value: u64, max_entries: 4}
  facts: {rename_from: data}
objects:
  one: {file: one.bpf.o, pin_maps: [counts]}
  six: {file: six.bpf.o, pin_maps: {.bss: zeroed}}
  nine: {file: nine.bpf.o, pin_maps: {.bss: facts}}
"""
"""One is recreated, two are renewed, of which one gets another name, one is renamed, one was lost,
one is new."""

EXPECTED = {
    "counts": {RECREATED: 1},
    "zeroed": {RENEWED: 1},
    "facts": {RENEWED: 1},
    "bounds": {},
    "gone": {LOST: 1},
    "more": {},
}


def begin(world: World, settings: str = NO_METRICS) -> dict[str, int | None]:
    """What is there before the change; the IDs."""
    world.put("one")
    world.put("six", "globals")
    world.put("nine", "globals")
    world.write(f"{settings}{FIRST}")
    applied = cli(world, "apply")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    names = ("counts", "zeroed", "data", "limits", "gone")
    return {name: map_id(world.pins / name) for name in names}


def change(world: World, settings: str = NO_METRICS) -> None:
    world.put("one", ENTRIES=32)
    world.put("six", "globals", MORE=1)
    world.put("nine", "globals", MORE=1, STEP=2)
    world.write(f"{settings}{SECOND}")
    (world.pins / "gone").unlink()


def memory_of(world: World) -> Memory:
    memory, note = read_state(state_path(world.state_directory, str(world.pins)))
    assert not note
    return memory


def counted(memory: Memory) -> dict[str, dict[MapIdChange, int]]:
    return {name: dict(record.changes) for name, record in memory.maps.items()}


def replace_pin(world: World, name: str = "counts", entries: int = 32) -> int:
    (world.pins / name).unlink()
    with kernel.holding(kernel.map_create(1, name, 4, 16, entries)) as fd:
        kernel.pin(fd, str(world.pins / name))
        return kernel.map_info(fd).id


def told(daemon: DaemonProcess) -> dict[str, str]:
    """What the journal says of changed IDs, by map: each once. The daemon ends, for it writes its
    log last."""
    daemon.stop()
    lines = re.findall(r"map (\S+) has a new ID: (.*)", daemon.log)
    assert len(dict(lines)) == len(lines)
    return dict(lines)


STEPS = (
    Step.PIN_MAP,
    Step.STAGE_MAP,
    Step.CARRY_DATA,
    Step.RENAME_MAP,
    Step.COMMIT_MAP,
    f"{Step.COMMIT_MAP}:2",
    Step.REMOVE_PROGRAMS,
    Step.WRITE_STATE,
)
AGAIN = (Step.WRITE_STATE, Step.SWEEP_STAGING, Step.LOAD_OBJECT)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_killed_at_a_step(world: World, start: Start, step: str) -> None:
    """Each change is counted once, for what it was, and the keeper knows its own pins."""
    before = begin(world)
    change(world)
    for at in (step, AGAIN[STEPS.index(step) % len(AGAIN)]):
        daemon = start(ready=False, variables={FAILPOINT_VARIABLE: at})
        died = daemon.wait_exit_or_ready()
        if died is None:
            assert at != step, "never reached"
            assert daemon.stop() == 0
        else:
            assert died == -signal.SIGKILL
    daemon = start()
    memory = memory_of(world)
    assert counted(memory) == EXPECTED
    assert all(record.made for record in memory.maps.values())
    assert memory.maps["bounds"].id == before["limits"]
    for name, former in (("counts", "counts"), ("facts", "data"), ("gone", "gone")):
        last = memory.maps[name].last_change
        assert last and last.old_id == before[former]
        assert memory.maps[name].id == map_id(world.pins / name)
    assert not os.path.exists(world.layout.made)
    assert daemon.stop() == 0
    start()
    assert memory_of(world) == memory, "nothing is counted again"


def test_the_map_of_a_killed_daemon_is_replaced(world: World, start: Start) -> None:
    """What it made was never seen: the next one finds that of somebody else."""
    old = begin(world)["counts"]
    change(world)
    daemon = start(ready=False, variables={FAILPOINT_VARIABLE: Step.WRITE_STATE})
    assert daemon.wait_exit_or_ready() == -signal.SIGKILL
    new = replace_pin(world)
    daemon = start()
    assert told(daemon)["counts"] == f"{old} became {new} (replaced, while no daemon ran)"
    assert counted(memory_of(world))["counts"] == {REPLACED: 1}
    assert not memory_of(world).maps["counts"].made


def test_what_the_journal_says(world: World, start: Start) -> None:
    begin(world)
    change(world)
    daemon = start(ready=False, variables={FAILPOINT_VARIABLE: Step.WRITE_STATE})
    assert daemon.wait_exit_or_ready() == -signal.SIGKILL
    replace_pin(world)
    lines = told(start())
    assert sorted(lines) == ["counts", "facts", "gone", "zeroed"]
    assert lines["counts"].endswith("(replaced, while no daemon ran)")
    assert lines["gone"].endswith("(lost, while no daemon ran)")
    for name in ("facts", "zeroed"):
        assert lines[name].endswith("(renewed, by a keeper that was killed)")
    world.put("one", ENTRIES=16)
    daemon = start()
    assert told(daemon)["counts"].endswith("(recreated)")
    assert told(start()) == {}


def test_counters_of_a_restarted_daemon(world: World, start: Start) -> None:
    """They are there from the start, and go on."""

    def samples() -> dict[str, float]:
        name = 'bpfkeeper_map_id_changes_total{map="counts",reason="'
        return {
            sample.removeprefix(name).rstrip('"}'): value
            for sample, value in daemon.metrics().items()
            if sample.startswith(name)
        }

    begin(world, METRICS)
    daemon = start()
    expected = dict.fromkeys(map(str, MapIdChange), 0.0)
    assert samples() == expected
    replace_pin(world, entries=64)
    daemon.hup()
    expected |= {"replaced": 1.0, "recreated": 1.0}
    assert samples() == expected
    for end in (DaemonProcess.stop, DaemonProcess.kill):
        end(daemon)
        daemon = start()
        assert samples() == expected


def shown(world: World) -> dict[str, dict[str, object]]:
    found = json.loads(cli(world, "maps", "--json").stdout)
    return {entry["name"]: entry for entry in found}


def test_commands_show_what_no_daemon_has_seen(world: World) -> None:
    old = begin(world)["counts"]
    state = Path(state_path(world.state_directory, str(world.pins)))
    text = state.read_text()
    entry = shown(world)["counts"]
    assert (entry["made"], entry["last_change"], entry["changes"]) == (True, None, {})
    new = replace_pin(world, entries=16)
    for _ in range(2):
        entry = shown(world)["counts"]
        last = entry["last_change"]
        assert isinstance(last, dict)
        assert (entry["id"], last["reason"], last["old_id"]) == (new, "replaced", old)
        assert (entry["made"], entry["changes"]) == (False, {"replaced": 1})
    assert state.read_text() == text, "they write nothing"
    applied = cli(world, "apply").stdout
    line = f"map counts has a new ID: {old} became {new} (replaced, while no daemon ran)"
    assert line in applied.splitlines()
    assert counted(memory_of(world))["counts"] == {REPLACED: 1}
    last_change = memory_of(world).maps["counts"].last_change
    assert last_change and last_change.at == os.stat(world.pins / "counts").st_ctime


def test_unloading_ends_the_counting(world: World, start: Start) -> None:
    """With `--maps` the map is over, and so are its counts; what comes later is another."""
    begin(world)
    change(world)
    daemon = start(ready=False, variables={FAILPOINT_VARIABLE: Step.WRITE_STATE})
    assert daemon.wait_exit_or_ready() == -signal.SIGKILL
    assert cli(world, "unload").returncode == 0
    memory = memory_of(world)
    assert counted(memory)["counts"] == {RECREATED: 1}, "seen before the mark went"
    assert cli(world, "unload", "--maps").returncode == 0
    assert not any(map_id(world.pins / name) for name in ("counts", "zeroed", "facts", "more"))
    left = memory_of(world).maps
    assert set(left) == {"limits", "data"}, "only a manifest tells that these were renamed"
    assert told(start()) == {}
    assert not any(counted(memory_of(world)).values())
