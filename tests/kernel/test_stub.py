"""Swaps behind a stub: no event is missed and none is seen twice, where the kernel has no update."""

import os
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.state import ReloadResult
from tests.kernel.exactness import GETPGID, Caller, seen, total
from tests.kernel.test_reload import plan_now
from tests.scenario import World, refused

EXACT = """
objects:
  one:
    file: one.bpf.o
    pin_maps: [seen]
    programs: {program: {attach: auto, swap: SWAP}}
"""


def write(world: World, swap: str = "exact") -> None:
    world.write(EXACT.replace("SWAP", swap))


def stub_id(world: World, key: str = "one/program") -> int:
    fd = kernel.pinned(f"{world.layout.stubs}/{key}/stub", kernel.PinKind.PROGRAM)
    assert fd is not None
    with kernel.holding(fd):
        return kernel.program_info(fd).id


@pytest.mark.parametrize("hook", ["raw_tp/sys_enter", "tp_btf/sys_enter"])
def test_no_event_is_missed_or_seen_twice(world: World, hook: str) -> None:
    caller = Caller()
    macros = {"HOOK": f'"{hook}"', "PID": caller.pid, "SYSCALL": GETPGID}
    write(world)
    world.put("one", "exact", **macros)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        ((path, (link_id, running)),) = world.link_ids().items()
        assert running == stub_id(world)
        caller.go()
        for swap in range(200):
            world.put("one", "exact", VERSION=swap % 2 + 1, **macros)
            outcome = world.reload(keeper, force=True)
            assert outcome.result is ReloadResult.OK, outcome
        assert world.link_ids() == {path: (link_id, running)}
        calls = caller.stop()
        assert total(world)[0] == calls
        assert min(events for events, _ in seen(world)[1:3]) > 0
    assert plan_now(world) == ()
