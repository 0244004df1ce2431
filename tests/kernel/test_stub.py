"""Swaps behind a stub, where the kernel has no update: no event is missed, none is seen twice."""

import os
import subprocess
import threading
import time

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.directories import pins_below
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import Step
from tests.kernel.exactness import GETPGID, Caller, seen, total
from tests.kernel.test_reload import plan_now
from tests.kernel.test_rollback import fail_at_each_step
from tests.kernel.test_trace_hooks import tracefs
from tests.machine import passed_over, skip_without_section
from tests.scenario import World

__all__ = ["tracefs"]

EXACT = """
objects:
  one:
    file: one.bpf.o
    pin_maps: [seen]
    programs: {PROGRAM: {attach: auto, swap: SWAP}}
"""


def write(world: World, swap: str = "exact", program: str = "program") -> None:
    world.write(EXACT.replace("SWAP", swap).replace("PROGRAM", program))


def put(world: World, version: int = 1, hook: str = "raw_tp/sys_enter", **macros: object) -> None:
    """A version that sees this process's own calls of getpgid(2), if not another's."""
    macros = {"PID": os.getpid()} | macros
    if "sys_enter" in hook:
        macros["SYSCALL"] = GETPGID
    world.put("one", "exact", HOOK=f'"{hook}"', VERSION=version, **macros)


def reload(world: World, keeper: Keeper, *, force: bool = False) -> tuple[str, ...]:
    """A reload that must go well; its notes."""
    outcome = world.reload(keeper, force=force)
    assert outcome.result is ReloadResult.OK, outcome
    return outcome.notes


def stub_ids(world: World, key: str = "one/program") -> tuple[int, int]:
    """IDs of a stub and of its array."""
    path = f"{world.layout.stubs}/{key}"
    stub, slot = (
        kernel.pinned(f"{path}/stub", kernel.PinKind.PROGRAM),
        kernel.pinned_map(f"{path}/slot"),
    )
    assert stub is not None and slot is not None
    with kernel.holding(stub), kernel.holding(slot[0]):
        return kernel.program_info(stub).id, slot[1].id


def links(world: World) -> list[tuple[int, int]]:
    return list(world.link_ids().values())


def check_served(world: World, version: int, times: int = 1) -> None:
    """Every call is seen once, by this version."""
    before = seen(world)
    for _ in range(3):
        os.getpgid(0)
    after = [now[0] - then[0] for now, then in zip(seen(world), before, strict=True)]
    assert after == [3 * times if place == version else 0 for place in range(4)]


@pytest.mark.parametrize(
    ("hook", "swaps"),
    [
        ("raw_tp/sys_enter", 1000),
        ("tp_btf/sys_enter", 100),
        ("tp/raw_syscalls/sys_enter", 200),
        ("uprobe/LIBC:getpgid", 200),
        ("uprobe.multi/LIBC:getpgid", 200),
        ("fentry/__x64_sys_getpgid", 100),
        ("kprobe/__x64_sys_getpgid", 200),
    ],
)
@pytest.mark.usefixtures("tracefs")
def test_no_event_is_missed_or_seen_twice(world: World, hook: str, swaps: int) -> None:
    hook = hook.replace("LIBC", libc())
    skip_without_section(hook)
    caller = Caller()
    write(world)
    put(world, 1, hook, PID=caller.pid)
    with world.keeper() as keeper:
        reload(world, keeper)
        ((path, (link_id, running)),) = world.link_ids().items()
        assert running == stub_ids(world)[0]
        caller.go()
        for swap in range(swaps):
            put(world, swap % 2 + 1, hook, PID=caller.pid)
            reload(world, keeper, force=True)
        assert world.link_ids() == {path: (link_id, running)}
        calls = caller.stop()
        stub = kernel.pinned(f"{world.layout.stubs}/one/program/stub", kernel.PinKind.PROGRAM)
        assert stub is not None
        with kernel.holding(stub):
            assert calls - passed_over(stub) <= total(world)[0] <= calls
        assert min(events for events, _ in seen(world)[1:3]) > 0
    assert plan_now(world) == ()


def libc() -> str:
    """The file that this process has its C library from."""
    with open("/proc/self/maps", encoding="ascii") as maps:
        return next(line.split()[-1] for line in maps if "/libc.so" in line or "/libc-" in line)


def test_the_next_keeper_goes_on_with_the_stub(world: World) -> None:
    write(world)
    put(world)
    assert world.apply().result is ReloadResult.OK
    attached = world.link_ids(), stub_ids(world)
    check_served(world, 1)
    assert plan_now(world) == ()
    put(world, 2)
    with world.keeper() as keeper:
        plan = "\n".join(str(action) for action in plan_now(world))
        assert "swap the program of one/program at raw_tracepoint of tracepoint:sys_enter" in plan
        assert "both run for a moment" not in plan
        reload(world, keeper)
        (status,) = keeper.status.attachments
        assert status.up and status.prog_id in world.program_ids()
    assert (world.link_ids(), stub_ids(world)) == attached
    check_served(world, 2)
    world.write("objects: {}\n")
    assert world.apply().result is ReloadResult.OK
    assert world.link_ids() == {} and not os.path.exists(world.layout.stubs)


def test_behind_a_stub_and_out_again(world: World) -> None:
    """The attachment is replaced, the new one beside the old one: none is missed."""
    caller = Caller()
    write(world, "default")
    put(world, 1, PID=caller.pid)
    with world.keeper() as keeper:
        reload(world, keeper)
        caller.go()
        for _ in range(3):
            write(world, "exact")
            reload(world, keeper)
            assert links(world)[0][1] == stub_ids(world)[0]
            write(world, "default")
            reload(world, keeper)
            assert links(world)[0][1] in world.program_ids()
            assert not os.path.exists(world.layout.stubs)
        calls = caller.stop()
        assert total(world)[0] >= calls
    assert plan_now(world) == ()


def test_a_program_that_does_not_fit_gets_another_stub(world: World) -> None:
    """An array takes programs of one type: tp_btf at the place of raw_tp is of another."""
    caller = Caller()
    write(world)
    put(world, 1, PID=caller.pid)
    with world.keeper() as keeper:
        reload(world, keeper)
        former = stub_ids(world)
        caller.go()
        put(world, 2, "tp_btf/sys_enter", PID=caller.pid)
        notes = reload(world, keeper)
        assert "gets a new stub, beside the former one for a moment" in "\n".join(notes)
        while not seen(world)[2][0]:
            time.sleep(0.01)
        calls = caller.stop()
        assert total(world)[0] >= calls
        assert set(stub_ids(world)).isdisjoint(former)
        put(world, 1, "tp_btf/sys_enter")
        assert reload(world, keeper) == ()
        check_served(world, 1)
    assert plan_now(world) == ()


def test_a_program_under_another_name_takes_the_stub_along(world: World) -> None:
    caller = Caller()
    write(world)
    put(world, 1, PID=caller.pid)
    with world.keeper() as keeper:
        reload(world, keeper)
        stub, (link,) = stub_ids(world), links(world)
        caller.go()
        write(world, program="latter")
        put(world, 2, PID=caller.pid, PROGRAM="latter")
        reload(world, keeper)
        assert (stub_ids(world, "one/latter"), links(world)) == (stub, [link])
        while not seen(world)[2][0]:
            time.sleep(0.01)
        calls = caller.stop()
        assert total(world)[0] == calls
        assert os.listdir(f"{world.layout.stubs}/one") == ["latter"]
    assert plan_now(world) == ()


def test_pins_of_a_stub_that_are_removed_by_hand(world: World) -> None:
    """The daemon's descriptors keep the array's contents; without a daemon they are lost."""
    write(world)
    put(world)
    with world.keeper() as keeper:
        reload(world, keeper)
        ids = stub_ids(world)
        for name in ("slot", "stub"):
            os.unlink(f"{world.layout.stubs}/one/program/{name}")
            keeper.look()
            assert keeper.status.drift["attachment_pin_lost"] == 1
            check_served(world, 1)
            reload(world, keeper)
            assert stub_ids(world) == ids
        put(world, 2)
        reload(world, keeper)
        check_served(world, 2)
        assert stub_ids(world) == ids
    os.unlink(f"{world.layout.stubs}/one/program/slot")
    while total_of_calls(world):  # the kernel takes its time to empty the array
        pass
    with world.keeper() as keeper:
        reload(world, keeper)
        check_served(world, 2)
        assert stub_ids(world)[0] != ids[0] and stub_ids(world)[1] != ids[1]
    assert plan_now(world) == ()


def total_of_calls(world: World) -> int:
    """How often a call of now is seen."""
    before = total(world)[0]
    os.getpgid(0)
    return total(world)[0] - before


def test_a_slot_that_somebody_else_emptied_or_wrote(world: World) -> None:
    write(world)
    put(world)
    with world.keeper() as keeper:
        reload(world, keeper)
        slot = f"{world.layout.stubs}/one/program/slot"
        path = ["bpftool", "map", "delete", "pinned", slot, "key", "0", "0", "0", "0"]
        subprocess.run(path, check=True)
        keeper.look()
        assert keeper.status.drift["attachment_replaced"] == 1
        assert total_of_calls(world) == 0
        reload(world, keeper)
        check_served(world, 1)


def test_runs_are_those_of_the_stub(world: World) -> None:
    """The kernel counts no runs of a program that another calls."""
    write(world)
    put(world)
    text = world.manifest_file.read_text().replace(
        "exact}", "exact, health: {seconds: 1, moves: runs}}"
    )
    world.manifest_file.write_text(text)
    stop, calls = threading.Event(), threading.Thread(target=lambda: call_until(stop))
    calls.start()
    try:
        with world.keeper() as keeper:
            reload(world, keeper)
            put(world, 2)
            reload(world, keeper)
    finally:
        stop.set()
        calls.join()


def call_until(stop: threading.Event) -> None:
    while not stop.wait(0.01):
        os.getpgid(0)


def test_what_cannot_be_called_is_said(world: World) -> None:
    skip_without_section("uprobe.s//bin/true:main")
    world.put("one", "exact", HOOK='"uprobe.s//bin/true:main"')
    write(world)
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
    assert outcome.result is ReloadResult.REJECTED
    assert "swap: exact is not possible: a sleepable program cannot be called" in (
        outcome.failures[0].message
    )


def test_every_step_is_rolled_back(world: World) -> None:
    """A stub is made, one is written, one is moved; and a new one takes the place of another.

    They share a map that is recreated: it is one change."""

    def objects(version: int, swap: str, moved: str, hook: str) -> None:
        names = {"one": "program", "two": moved, "three": "program", "four": "program"}
        swaps = {"one": "exact", "two": "exact", "three": swap, "four": "exact"}
        lines = ["maps: {shared: {on_mismatch: recreate}}", "objects:"]
        for name, program in names.items():
            tracepoint = hook if name == "four" else "raw_tp/sys_enter"
            world.put(
                *(name, "exact"),
                HOOK=f'"{tracepoint}"',
                VERSION=version,
                PROGRAM=program,
                PID=os.getpid(),
                SYSCALL=GETPGID,
                SOCKETS="shared",
                TYPE="BPF_MAP_TYPE_HASH",
                ENTRIES=8 * version,
            )
            lines.append(
                f"  {name}: {{file: {name}.bpf.o, pin_maps: [seen, shared],\n"
                f"    programs: {{{program}: {{attach: auto, swap: {swaps[name]}}}}}}}"
            )
        world.write("\n".join([*lines, ""]))

    objects(1, "default", "former", "raw_tp/sys_enter")
    with world.keeper() as keeper:
        reload(world, keeper)
        objects(2, "exact", "latter", "tp_btf/sys_enter")
        before = pins_below(world.layout.stubs, 3)
        failed = fail_at_each_step(world, keeper, force=False)
        assert plan_now(world) == ()
        check_served(world, 2, times=4)
        assert before != pins_below(world.layout.stubs, 3)
    wanted = {Step.MAKE_STUB, Step.MOVE_STUB, Step.SWAP, Step.COMMIT_LINK}
    assert wanted <= failed, f"never reached: {wanted - failed}"
