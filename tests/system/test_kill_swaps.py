"""Killed at any step of a swap by two links, of a netfilter link that changes its priority, of a
map that is registered, or of another version behind a stub, the daemon leaves them served; the
next start converges, and takes them down."""

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import suppress

import pytest

from bpfkeeperd.hooks import STRUCT_OPS
from bpfkeeperd.steps import FAILPOINT_VARIABLE, Step
from tests.bench.gap import quiet_pair
from tests.kernel.exactness import GETPGID
from tests.kernel.test_struct_ops import connection, transfer
from tests.kernel.test_struct_ops import versions as registered_versions
from tests.machine import Netns, skip_without, skip_without_section
from tests.scenario import World, contents
from tests.system.conftest import Start
from tests.system.process import NO_METRICS, cli

MANIFEST = """
objects:
  raw: {file: raw.bpf.o, pin_maps: {seen: raws}, programs: {program: {attach: auto}}}
  exact:
    {file: exact.bpf.o, pin_maps: {seen: exacts}, programs: {program: {attach: auto, swap: exact}}}
  filter:
    file: filter.bpf.o
    pin_maps: {seen: filters}
    programs:
      program: {attach: [{netfilter: ipv4/local_in, priority: 10, netns: HERE}]}
  ops: {file: ops.bpf.o, pin_maps: [seen], register: [ops]}
"""
KEPT = ("raws", "exacts", "filters", "seen")
SWAPS = 4
STEPS = (
    (Step.PIN_PROGRAMS, 2),
    (Step.STAGE_PROGRAMS, 1),
    *((Step.SWAP, time) for time in range(1, SWAPS + 1)),
    *((Step.COMMIT_LINK, time) for time in (1, 2)),
    (Step.STAGE_MAP, 1),
    (Step.COMMIT_MAP, 1),
    (Step.COMMIT_PROGRAMS, 1),
    (Step.REMOVE_PROGRAMS, 1),
    (Step.WRITE_STATE, 1),
)


@pytest.fixture
def quiet() -> Iterator[Netns]:
    with quiet_pair(f"keeper-swaps-{uuid.uuid4().hex[:8]}") as pair:
        yield pair


@pytest.fixture
def name() -> str:
    return f"keep_{uuid.uuid4().hex[:8]}"


def put(world: World, name: str, version: int) -> None:
    own = {"PID": os.getpid(), "SYSCALL": GETPGID, "VERSION": version}
    world.put("raw", "exact", HOOK='"raw_tp/sys_enter"', **own)
    world.put("exact", "exact", HOOK='"tp_btf/sys_enter"', **own)
    world.put("filter", "exact", HOOK='"netfilter"', VERDICT=1, VERSION=version)
    world.put("ops", "congestion", NAME=f'"{name}"', VERSION=version)


def counts(world: World, name: str) -> list[int]:
    found = sorted(contents(world.pins / name).items())
    return [int.from_bytes((value or b"")[:8], "little") for _, value in found]


def check_served(world: World, pair: Netns, name: str, only: int | None = None) -> None:
    """Each event once: by ``only`` this version, or by any one."""
    for kept, happen in (
        ("raws", lambda: os.getpgid(0)),
        ("exacts", lambda: os.getpgid(0)),
        ("filters", lambda: pair.send(1)),
    ):
        before = counts(world, kept)
        happen()
        world.wait(lambda: counts(world, kept) != before)  # noqa: B023
        after = counts(world, kept)
        moved = [now - then for now, then in zip(after, before, strict=True)]
        if sum(moved) == 2 and only is None:  # killed while both were there
            assert kept != "exacts" and moved[1:3] == [1, 1], (kept, moved)
            continue
        assert sum(moved) == 1, (kept, moved)
        assert only is None or moved[only] == 1, (kept, moved)
    served = registered_versions(world, name)
    assert len(served) == 1 and (only is None or served == {only})


def any_served(world: World, pair: Netns, name: str) -> bool:
    """The kernel takes down some links a moment after they went."""
    before = [counts(world, kept) for kept in KEPT]
    os.getpgid(0)
    pair.send(1)
    with suppress(FileNotFoundError), connection(name) as ends:
        transfer(ends)
    return [counts(world, kept) for kept in KEPT] != before


@pytest.mark.parametrize(("step", "time"), STEPS, ids=lambda value: str(value))
def test_killed_at_a_step(
    world: World, quiet: Netns, name: str, start: Start, step: Step, time: int
) -> None:
    skip_without(STRUCT_OPS)
    skip_without_section("netfilter")
    world.write(f"{NO_METRICS}{MANIFEST.replace('HERE', quiet.here)}")
    put(world, name, 1)
    daemon = start()
    check_served(world, quiet, name, 1)
    assert daemon.stop() == 0
    put(world, name, 2)
    daemon = start(ready=False, variables={FAILPOINT_VARIABLE: f"{step}:{time}"})
    assert daemon.wait_exit_or_ready() == -signal.SIGKILL, "never reached"
    check_served(world, quiet, name)

    daemon = start()
    check_served(world, quiet, name, 2)
    plan = cli(world, "plan", "--exit-code")
    assert (plan.returncode, plan.stdout.splitlines()[-1]) == (0, "nothing to do")
    assert set(os.listdir(world.layout.own)) == {"arrays", "links", "objects", "stubs"}
    assert daemon.stop() == 0
    world.unload()
    world.wait(lambda: not any_served(world, quiet, name))
    assert not os.path.exists(world.layout.own)
