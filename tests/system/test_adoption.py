"""The daemon comes to what a plain loader attached: not an event is missed, or counted twice,
whatever step it is killed at."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfkeeperd.steps import FAILPOINT_VARIABLE, Step
from tests.kernel.outsideloader import Outsider, outsider
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import NO_METRICS, cli, sending

MANIFEST = (
    NO_METRICS + "\nobjects: {one: {file: one.bpf.o, programs: {count: {attach:"
    " [{cgroup: CGROUPMORE}]}}}}\n"
)


def put(world: World, step: int) -> None:
    (world.directory / "one.bpf.o").write_bytes(
        world.build("counter", PIN=1, STEP=step).read_bytes()
    )


@contextmanager
def served(world: World, *, step: int = 1) -> Iterator[Outsider]:
    """By a plain loader, which has left: a pin in its own directory is what holds its link."""
    links = world.pins / "their_links"
    links.mkdir()
    path = world.build("counter", PIN=1, STEP=step)
    with outsider(path, world.pins, "cgroup", world.cgroup, links) as found:
        found.leave()
        yield found
    (links / "count").unlink(missing_ok=True)
    links.rmdir()


def test_from_a_plain_loader_to_the_daemon(world: World, start: Start) -> None:
    """Adopted by a start, kept by a restart, swapped by a reload, under traffic all the while."""
    put(world, 1)
    world.write(MANIFEST.replace("MORE", ""))
    with served(world) as other:
        map_id = world.map_id()
        with sending(world.cgroup) as stop:
            daemon = start()
            assert list(world.link_ids().values()) == [(other.link, other.program)]
            daemon.wait_log(f"adopted link ID {other.link}")
            shown = cli(world, "status")
            assert shown.returncode == 0 and "up, adopted" in shown.stdout, shown
            assert cli(world, "plan", "--exit-code").stdout.splitlines()[-1] == "nothing to do"
            assert daemon.stop() == 0
            daemon = start()
            assert list(world.link_ids().values()) == [(other.link, other.program)]
            put(world, 2)
            daemon.signal(signal.SIGHUP)
            daemon.wait_ready(2)
            ((link, program),) = world.link_ids().values()
            deadline = time.monotonic() + 10
            while (seen := world.events())[0] == seen[1]:  # the new version counts twice as fast
                assert time.monotonic() < deadline, "the new version counts nothing"
            sent = stop()
        assert link == other.link and program != other.program
        events, steps = world.events()
        assert (events, world.map_id()) == (sent, map_id) and sent < steps <= 2 * sent
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    "step", [Step.ADOPT, Step.TAKE_OVER, Step.PIN_PROGRAMS, Step.ATTACH], ids=str
)
def test_killed_at_a_step(world: World, start: Start, step: Step) -> None:
    """Theirs goes on; the next start adopts or takes over what the last one left."""
    theirs = 1 if step is Step.ADOPT else 10
    (world.cgroup / "child").mkdir()
    put(world, 1)
    more = ", take_over: true}, {cgroup: CGROUP/child"
    world.write(MANIFEST.replace("MORE", more))
    with served(world, step=theirs) as other, sending(world.cgroup) as stop:
        daemon = start(ready=False, variables={FAILPOINT_VARIABLE: step})
        assert daemon.wait_exit_or_ready() == -signal.SIGKILL, "never reached"
        daemon = start()
        links = dict(world.link_ids().values())
        assert other.link in links and len(links) == 2 and len(world.program_ids()) == 1
        assert {*links.values()} == world.program_ids()
        assert (other.program in world.program_ids()) is (step is Step.ADOPT)
        sent = stop()
        assert world.events()[0] == sent
        plan = cli(world, "plan", "--exit-code")
        assert (plan.returncode, plan.stdout.splitlines()[-1]) == (0, "nothing to do"), plan
        assert daemon.stop() == 0


def test_plan_and_status_tell_of_another_program(world: World, start: Start) -> None:
    put(world, 1)
    world.write(MANIFEST.replace("MORE", ""))
    with served(world, step=10) as other:
        said = f"link ID {other.link} of somebody else (program count ID {other.program})"
        assert f"or adopt {said} if it is the same" in cli(world, "plan").stdout
        daemon = start()
        daemon.wait_log(f"{said} is attached there too")
        assert "foreign 1" in cli(world, "status").stdout
        assert f"note: one/count at cgroup_skb/egress of cgroup:{world.cgroup}: {said}" in (
            cli(world, "plan").stdout
        )
        world.write(MANIFEST.replace("MORE", ", take_over: true"))
        assert f"DETACH {said}, which runs beside" in cli(world, "plan").stdout
        daemon.signal(signal.SIGHUP)
        daemon.wait_ready(2)
        assert "drift" not in cli(world, "status").stdout
        (Path(world.pins) / "their_links/count").unlink()
        assert daemon.stop() == 0
