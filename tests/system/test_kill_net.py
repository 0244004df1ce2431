"""Killed at any step of a filter of tc, the daemon leaves it served; the next start converges."""

import signal
from collections.abc import Iterator

import pytest

from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import FAILPOINT_VARIABLE, Step
from tests.bench.gap import quiet_pair
from tests.kernel.test_net_hooks import tc
from tests.machine import Netns
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import NO_METRICS, cli


@pytest.fixture
def quiet(request: pytest.FixtureRequest) -> Iterator[Netns]:
    with quiet_pair(f"keeper-kill-{abs(hash(request.node.nodeid)) % 10**8}") as pair:
        yield pair


def write(world: World, pair: Netns, *interfaces: str) -> None:
    targets = ", ".join(f"{{interface: {name}, netns: {pair.here}}}" for name in interfaces)
    programs = f"{{count: {{attach: [{targets}]}}}}" if targets else "{}"
    world.write(
        f"{NO_METRICS}\nobjects: {{one: {{file: one.bpf.o, pin_maps: [counts],"
        f" programs: {programs}}}}}\n"
    )


def filters(pair: Netns, interface: str) -> int:
    return tc(pair, "filter", "show", "dev", interface, "ingress").count("handle ")


def check_served(world: World, pair: Netns) -> None:
    before = world.events()[0]
    pair.send(5)
    assert world.events()[0] == before + 5


@pytest.mark.parametrize(
    ("step", "time"),
    [(Step.RECORD, 1), (Step.RECORD, 2), (Step.ATTACH, 1), (Step.SWAP, 1), (Step.DETACH, 1)],
)
def test_killed_at_a_step(world: World, quiet: Netns, start: Start, step: Step, time: int) -> None:
    """One filter is swapped, one is made, or both are taken down."""
    world.put("one", HOOK='"clsact/ingress"', VERDICT=-1)
    write(world, quiet, "veth0", *(["lo"] if step is Step.DETACH else []))
    assert world.apply().result is ReloadResult.OK
    check_served(world, quiet)
    world.put("one", HOOK='"clsact/ingress"', VERDICT=-1, STEP=10)
    write(world, quiet, "veth0", *([] if step is Step.DETACH else ["lo"]))
    daemon = start(ready=False, variables={FAILPOINT_VARIABLE: f"{step}:{time}"})
    assert daemon.wait_exit_or_ready() == -signal.SIGKILL, "never reached"
    check_served(world, quiet)

    daemon = start()
    check_served(world, quiet)
    assert world.events()[1] > world.events()[0], "the new version"
    plan = cli(world, "plan", "--exit-code")
    assert (plan.returncode, plan.stdout.splitlines()[-1]) == (0, "nothing to do")
    assert (filters(quiet, "veth0"), filters(quiet, "lo")) == (1, int(step is not Step.DETACH))
    write(world, quiet)
    daemon.signal(signal.SIGHUP)
    world.wait(lambda: not world.layout_files("attached"))
    assert (filters(quiet, "veth0"), filters(quiet, "lo")) == (0, 0)
    assert daemon.stop() == 0
