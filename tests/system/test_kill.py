"""Killed at any step, the daemon leaves hooks served; the next start converges (I4)."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.enactswaps import SWAPS_AT_ONCE
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import FAILPOINT_VARIABLE, Step
from tests.kernel.exactness import GETPGID, seen, total
from tests.kernel.test_globals import value
from tests.kernel.test_tailcalls import counted
from tests.machine import events, inside_cgroup, send_datagrams
from tests.scenario import World, contents
from tests.system.conftest import Start
from tests.system.process import NO_METRICS, DaemonProcess, cli, sending

FIRST = """
maps:
  counts: {on_mismatch: recreate}
  limits: {type: hash, key: u32, value: u64, max_entries: 4, entries: [{key: 1, value: 7}]}
  quotas: {type: hash, key: u32, value: u64, max_entries: 4, entries: [{key: 1, value: 7}]}
objects:
  one:
    {file: one.bpf.o, pin_maps: [counts], programs: {count: {attach: [{cgroup: CGROUP}]}}}
  two:
    {file: two.bpf.o, pin_maps: [counts], programs: {former: {attach: [{cgroup: CGROUP}]}}}
  three:
    {file: three.bpf.o, pin_maps: [others], programs: {count: {attach: [{cgroup: CGROUP}]}}}
  four:
    {file: four.bpf.o, pin_maps: [fours], programs: {count: {attach: [{cgroup: CGROUP}]}}}
  five:
    {file: five.bpf.o, pin_maps: [whole, mixed], programs: {enter: {attach: [{cgroup: CGROUP}]}}}
  six:
    {file: six.bpf.o, pin_maps: {.bss: zeroed}, programs: {count: {attach: [{cgroup: CGROUP}]}}}
  seven: {file: seven.bpf.o}
  eight:
    {file: eight.bpf.o, pin_maps: {seen: eights}, programs: {former: {attach: auto, swap: exact}}}
  nine: {file: nine.bpf.o, programs: {program: {attach: auto, swap: exact}}}
"""
SECOND = """
defaults: {pin: {group: 4711, mode: "0640"}}
maps:
  counts: {on_mismatch: recreate}
  second: {type: hash, key_size: 4, value_size: 8, max_entries: 8,
           entries: [{key: 1, value: 11}]}
  tc/globals/bounds: {type: hash, key: u32, value: u64, max_entries: 4, rename_from: limits}
  quotas: {type: hash, key: u32, value: u64, max_entries: 4, entries: [{key: 1, value: 8}],
           enforce: true}
objects:
  one:
    file: one.bpf.o
    pin_maps: [counts, second]
    programs: {count: {attach: [{cgroup: CGROUP/child}, {cgroup: CGROUP}]}}
  two:
    {file: two.bpf.o, pin_maps: [counts], programs: {latter: {attach: [{cgroup: CGROUP}]}}}
  three:
    {file: three.bpf.o, pin_maps: [others], programs: {count: {attach: [{cgroup: CGROUP}]}}}
  five:
    {file: five.bpf.o, pin_maps: [whole, mixed], programs: {enter: {attach: [{cgroup: CGROUP}]}}}
  six:
    {file: six.bpf.o, pin_maps: {.bss: zeroed}, programs: {count: {attach: [{cgroup: CGROUP}]}}}
  eight:
    {file: eight.bpf.o, pin_maps: {seen: eights}, programs: {latter: {attach: auto, swap: exact}}}
  ten: {file: ten.bpf.o, programs: {program: {attach: auto, swap: exact}}}
"""
"""One and two get a new map in place of theirs, one a second target, two a program that takes over
a link; three is loaded again on the map it has; four and seven go, seven with an array of its own.
Five tail-calls and gets a new array with new programs, six gets new global data; one map of the
manifest's own gets another name, one another entry. All pins get another group. Eight has a
program take over another's stub, nine goes with its stub, ten comes with one. Every step is in it,
or in a case."""

OBJECTS = ("one", "two", "three", "five", "six", "eight", "ten")
STUBS = ("eight/latter", "ten/program")
ATTACHED = ("one/count", "two/latter", "three/count", "five/enter", "six/count")


def begin(world: World) -> None:
    """What runs before the change, and two pins that are nobody's business."""
    (world.cgroup / "child").mkdir()
    world.put("one")
    world.put("two", PROGRAM="former")
    world.put("three", MAP="others")
    world.put("four", MAP="fours")
    world.put("five", "stages", VERSION=1, STATIC=1)
    world.put("six", "globals")
    world.put("seven", "stages", VERSION=1, STATIC=1)
    exact = {"HOOK": '"raw_tp/sys_enter"', "SYSCALL": GETPGID, "PID": os.getpid()}
    world.put("eight", "exact", PROGRAM="former", **exact)
    world.put("nine", "exact", **exact)
    world.write(f"{NO_METRICS}{FIRST}")
    assert world.apply().result is ReloadResult.OK
    with kernel.holding(kernel.map_create(1, "foreign", 4, 8, 4)) as fd:
        kernel.map_update(fd, b"\1\0\0\0", b"12345678")
        kernel.pin(fd, str(world.pins / "foreign"))
        kernel.pin(fd, str(world.pins / "counts_2"))


def change(world: World) -> None:
    world.put("one", STEP=2, ENTRIES=32, SECOND_MAP=8)
    world.put("two", STEP=2, ENTRIES=32, PROGRAM="latter")
    world.put("three", STEP=2, MAP="others")
    world.put("five", "stages", VERSION=2, STATIC=1)
    world.put("six", "globals", MORE=1)
    exact = {"HOOK": '"raw_tp/sys_enter"', "SYSCALL": GETPGID, "PID": os.getpid()}
    world.put("eight", "exact", PROGRAM="latter", VERSION=2, **exact)
    world.put("ten", "exact", **exact | {"HOOK": '"raw_tp/sys_exit"'})
    world.write(f"{NO_METRICS}{SECOND}")


def nothing(world: World) -> None:
    """Nothing else is disturbed."""


def kill_at_swap(world: World) -> None:
    with DaemonProcess(world, variables={FAILPOINT_VARIABLE: "swap"}) as daemon:
        assert daemon.wait_exit() == -signal.SIGKILL
    assert os.path.isdir(world.layout.staging)


def remove_map_pin(world: World) -> None:
    (world.pins / "others").unlink()


def remove_program_pin(world: World) -> None:
    """The change is over; a program that is still attached lost its pin."""
    assert world.apply().result is ReloadResult.OK
    unpin_program(world)


def unpin_program(world: World) -> None:
    (programs,) = Path(world.layout.object("three")).iterdir()
    (programs / "count").unlink()


def link_path(world: World) -> str:
    (path,) = (path for path in world.link_ids() if path.startswith("three/"))
    return path


def remove_link_pin(world: World) -> None:
    os.unlink(f"{world.layout.links}/{link_path(world)}")


def remove_stub_pin(world: World) -> None:
    os.unlink(f"{world.layout.stubs}/eight/latter/slot")


def detach_link(world: World) -> None:
    link_id = world.link_ids()[link_path(world)][0]
    subprocess.run(["bpftool", "link", "detach", "id", str(link_id)], check=True)


def judge(world: World) -> None:
    """One of the programs has to show that it runs, which the traffic of the test lets it do."""
    text = world.manifest_file.read_text()
    three = "three.bpf.o, pin_maps: [others], programs: {count: {"
    assert three in text
    world.manifest_file.write_text(
        text.replace(three, f"{three}health: {{seconds: 20, moves: runs}}, ")
    )


@dataclass(frozen=True, slots=True)
class Case:
    """A way to reach a step."""

    step: Step
    disturb: Callable[[World], None] = nothing
    """After the change was asked for, before the daemon starts."""
    disturb_daemon: Callable[[World], None] | None = None
    """While it runs, before it reloads."""
    time: int = 1
    """At which of the same steps it dies."""
    three_is_served: bool = True
    """False when the test itself took its link away."""
    eight_is_served: bool = True
    """Likewise its stub."""

    def __str__(self) -> str:
        return f"{self.step}:{self.time}" + ("" if self.three_is_served else "-detached")


CASES = (
    Case(Step.SWEEP_STAGING, kill_at_swap),
    Case(Step.RESTORE_MAP, remove_map_pin),
    # Only a running daemon's descriptor keeps a link without a pin: with the daemon it goes.
    Case(Step.RESTORE_LINK, disturb_daemon=remove_link_pin, three_is_served=False),
    # As with links: without the daemon, the array that lost its pin is empty.
    Case(Step.RESTORE_STUB, disturb_daemon=remove_stub_pin, eight_is_served=False),
    Case(Step.RESTORE_PROGRAM, disturb_daemon=unpin_program),
    Case(Step.CREATE_MAP),
    Case(Step.LOAD_OBJECT),
    Case(Step.LOAD_OBJECT, time=3),
    Case(Step.FILL_MAP),
    Case(Step.PIN_MAP),
    Case(Step.STAGE_MAP),
    Case(Step.STAGE_MAP, time=2),
    Case(Step.STAGE_MAP, time=3),
    # A new map, one that is exchanged, one that is renamed, and those that stay.
    *(Case(Step.SET_RIGHTS, time=time) for time in (1, 2, 3, 5, 7, 9)),
    Case(Step.SET_RIGHTS, remove_map_pin),
    Case(Step.RENAME_MAP),
    Case(Step.WRITE_ENTRIES),
    Case(Step.PIN_PROGRAMS),
    Case(Step.PIN_PROGRAMS, time=2),
    Case(Step.PIN_PROGRAMS, time=3),
    Case(Step.STAGE_PROGRAMS, remove_program_pin),
    Case(Step.MAKE_STUB),
    Case(Step.MOVE_STUB),
    Case(Step.ATTACH),
    Case(Step.ATTACH, time=2),
    Case(Step.SWAP),
    Case(Step.SWAP, time=2),
    Case(Step.SWAP, time=3),
    Case(Step.SWAP, time=4),
    Case(Step.SWAP, time=5),
    Case(Step.SWAP, time=6),
    Case(Step.COMMIT_LINK),
    Case(Step.COMMIT_LINK, time=2),
    Case(Step.COMMIT_LINK, detach_link, time=2, three_is_served=False),
    Case(Step.COMMIT_MAP),
    Case(Step.COMMIT_MAP, time=2),
    Case(Step.COMMIT_MAP, time=3),
    Case(Step.CARRY_DATA),
    Case(Step.COMMIT_PROGRAMS, remove_program_pin),
    Case(Step.COUNT_RUNS, judge),
    Case(Step.TRIAL, judge),
    Case(Step.DETACH),
    Case(Step.REMOVE_PROGRAMS),
    Case(Step.REMOVE_PROGRAMS, time=2),
    Case(Step.REMOVE_PROGRAMS, time=4),
    Case(Step.REMOVE_STUB),
    Case(Step.REMOVE_ARRAY),
    Case(Step.WRITE_STATE),
)


def test_there_is_a_case_for_every_step() -> None:
    elsewhere = {Step.ADOPT, Step.TAKE_OVER}  # see test_adoption
    elsewhere |= {Step.RECORD}  # see test_kill_net
    assert {case.step for case in CASES} | elsewhere == set(Step)


def running_maps(world: World, name: str) -> dict[int, int]:
    """Maps of this name that attached programs use now: ID to events counted."""
    found = {}
    for _, program_id in world.link_ids().values():
        program = kernel.program_by_id(program_id)
        assert program is not None
        with kernel.holding(program):
            map_ids = kernel.program_info(program).map_ids
        for map_id in map_ids:
            fd = kernel.map_by_id(map_id)
            assert fd is not None
            with kernel.holding(fd):
                if kernel.map_info(fd).name == name:
                    value = kernel.map_lookup(fd, bytes(4), 16) or bytes(16)
                    found[map_id] = int.from_bytes(value[:8], "little")
    return found


def check_served(world: World, case: Case) -> int:
    """One, two, three and five count every datagram, wherever they do; returns how many were
    sent."""
    whole = counted(world, "whole")
    before, others = sum(running_maps(world, "counts").values()), running_maps(world, "others")
    with inside_cgroup(world.cgroup):
        send_datagrams(5)
    assert sum(running_maps(world, "counts").values()) == before + 2 * 5
    assert sum(counted(world, "whole")) == sum(whole) + 5
    assert counted(world, "mixed") == [0, 0, 0, 0]
    calls = total(world, "eights")[0]
    for _ in range(5):
        os.getpgid(0)
    if case.eight_is_served:
        assert total(world, "eights")[0] == calls + 5
    if case.three_is_served:
        ((map_id, number),) = others.items()
        assert running_maps(world, "others") == {map_id: number + 5}
    return 5


def stub_pins(world: World) -> list[kernel.Pin]:
    pins = kernel.scan(world.layout.stubs, 3, kernel.PinKind.PROGRAM)
    return [pin for pin in pins if pin.path[-1] == "stub"]


def check_converged(world: World, old_counts: int | None) -> None:
    plan = cli(world, "plan", "--exit-code")
    assert (plan.returncode, plan.stderr) == (0, "")
    assert plan.stdout.splitlines()[-1] == "nothing to do"
    assert set(os.listdir(world.layout.own)) == {"arrays", "links", "objects", "stubs"}
    assert os.listdir(world.layout.arrays) == ["five"]
    pinned = {}
    for name in OBJECTS:
        (digest,) = Path(world.layout.object(name)).iterdir()
        for pin in kernel.scan(str(digest), 1, kernel.PinKind.PROGRAM):
            pinned[f"{name}/{pin.path[0]}"] = pin.id
    running = [(path.rpartition("/")[0], prog) for path, (_, prog) in world.link_ids().items()]
    stubs = {"/".join(pin.path[:2]): pin.id for pin in stub_pins(world)}
    assert sorted(stubs) == sorted(STUBS)
    serving = [(name, pinned[name]) for name in ("one/count", *ATTACHED)]
    assert sorted(running) == sorted([*serving, *stubs.items()])
    assert sorted(os.listdir(world.layout.objects)) == sorted(OBJECTS)
    assert sorted(os.listdir(world.layout.links)) == sorted(OBJECTS)
    before = world.events()
    with inside_cgroup(world.cgroup / "child"):
        send_datagrams(1)
    assert world.events() == (before[0] + 3, before[1] + 6), "not all of them serve anew"
    for name, number in (("second", 11), ("tc/globals/bounds", 7), ("quotas", 8)):
        assert contents(world.pins / name) == {b"\1\0\0\0": number.to_bytes(8, "little")}, name
    assert not (world.pins / "limits").exists()
    for name in ("counts", "second", "tc/globals/bounds", "quotas", "others", "whole", "zeroed"):
        found = (world.pins / name).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, 4711, 0o640), name
    assert counted(world, "whole")[2], "the new stages run"
    os.getpgid(0)
    assert seen(world, "eights")[2][0], "the new program is called"
    assert value(world.pins / "zeroed", "another"), "the new data is used"
    deadline = time.monotonic() + 5
    while old_counts and (fd := kernel.map_by_id(old_counts)) is not None:
        os.close(fd)
        assert time.monotonic() < deadline, "the map of before is still there"
        time.sleep(0.02)


def check_foreign_pins(world: World) -> None:
    for name in ("foreign", "counts_2"):
        assert contents(world.pins / name) == {b"\1\0\0\0": b"12345678"}
    assert world.map_id("fours"), "the pin of a map that left the manifest was removed"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_at_a_step(world: World, start: Start, case: Case) -> None:
    begin(world)
    others, old_counts = world.map_id("others"), world.map_id()
    own = [world.map_id(name) for name in ("limits", "quotas")]
    sent = check_served(world, Case(case.step))
    change(world)
    case.disturb(world)

    with sending(world.cgroup) as stop:
        daemon = start(ready=False, variables={FAILPOINT_VARIABLE: f"{case.step}:{case.time}"})
        if case.disturb_daemon:
            daemon.wait_ready()
            case.disturb_daemon(world)
            daemon.signal(signal.SIGHUP)
            assert daemon.wait_exit() == -signal.SIGKILL
        else:
            assert daemon.wait_exit_or_ready() == -signal.SIGKILL, "never reached"
        sent += stop()
    sent += check_served(world, case)
    check_foreign_pins(world)

    with sending(world.cgroup) as stop:
        daemon = start()
        sent += stop()
    sent += check_served(world, Case(case.step))
    assert world.map_id("others") == others
    if case.three_is_served:
        assert events(world.pins / "others")[0] == sent, "three missed some"
    assert sum(counted(world, "whole")) == sent, "five missed some"
    assert value(world.pins / "zeroed", "events") >= 5, "six lost what it had counted"
    assert [world.map_id(name) for name in ("tc/globals/bounds", "quotas")] == own
    check_converged(world, old_counts)
    check_foreign_pins(world)
    assert daemon.stop() == 0


def test_killed_again_and_again(world: World, start: Start) -> None:
    """Each start dies a step further on; what every one of them leaves is taken up."""
    begin(world)
    others, old_counts = world.map_id("others"), world.map_id()
    change(world)
    deaths = []
    # What a start finds done it writes at once: then nothing is left to write.
    elsewhere = (Step.MAKE_STUB, Step.MOVE_STUB, Step.WRITE_STATE)
    with sending(world.cgroup) as stop:
        for case in CASES:
            # The change alone leads there; objects of their own may be done before the others.
            if case == Case(case.step) and case.step not in elsewhere:
                daemon = start(ready=False, variables={FAILPOINT_VARIABLE: case.step})
                assert daemon.wait_exit_or_ready() == -signal.SIGKILL, f"{case} never reached"
                deaths.append(case.step)
        start()
        sent = stop()
    assert len(deaths) >= 10, deaths
    assert world.map_id("others") == others
    assert events(world.pins / "others")[0] == sent
    assert sum(counted(world, "whole")) == sent
    check_converged(world, old_counts)
    check_foreign_pins(world)


def test_killed_between_two_rows_of_updates(world: World, start: Start) -> None:
    """Links that are updated in a row are of two versions when the daemon dies between two rows."""
    count = SWAPS_AT_ONCE + 40
    for number in range(count):
        (world.cgroup / f"many{number}").mkdir()
    world.put("many", STEP=1)
    world.write(
        "objects: {many: {file: many.bpf.o, pin_maps: [counts],"
        ' programs: {count: {attach: [{cgroup: "CGROUP/many*"}]}}}}\n'
    )
    daemon = start()
    before = world.link_ids()
    assert len(before) == count
    assert daemon.stop() == 0
    world.put("many", STEP=2)
    variables = {FAILPOINT_VARIABLE: f"{Step.SWAP}:{SWAPS_AT_ONCE + 10}"}
    daemon = start(ready=False, variables=variables)
    assert daemon.wait_exit_or_ready() == -signal.SIGKILL
    between = world.link_ids()
    assert sum(between[path] != before[path] for path in before) == SWAPS_AT_ONCE
    daemon = start()
    after = world.link_ids()
    assert {path: link for path, (link, _) in after.items()} == {
        path: link for path, (link, _) in before.items()
    }
    assert len({program for _, program in after.values()}) == 1
    assert len(world.program_ids()) == 1
    assert daemon.stop() == 0
