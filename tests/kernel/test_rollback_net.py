"""Every step of a change to filters of tc and to netfilter fails once, and all is as before."""

import functools
from collections.abc import Iterator

import pytest

from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import Step
from tests.bench.gap import quiet_pair
from tests.kernel.test_net_hooks import tc
from tests.kernel.test_reload import plan_now
from tests.kernel.test_rollback import fail_at_each_step
from tests.machine import Netns, skip_without_section
from tests.scenario import World


@pytest.fixture
def quiet(request: pytest.FixtureRequest) -> Iterator[Netns]:
    with quiet_pair(f"keeper-undo-{abs(hash(request.node.nodeid)) % 10**8}") as pair:
        yield pair


def put(world: World, section: str, step: int, *targets: str) -> None:
    world.put("one", HOOK=f'"{section}"', VERDICT=-1 if "clsact" in section else 1, STEP=step)
    programs = f"{{count: {{attach: [{', '.join(targets)}]}}}}"
    world.write(
        f"objects: {{one: {{file: one.bpf.o, pin_maps: [counts], programs: {programs}}}}}\n"
    )


def filters(pair: Netns) -> list[str]:
    """All that are there, with the IDs of their programs."""
    places = [(device, side) for device in ("veth0", "lo") for side in ("ingress", "egress")]
    return [tc(pair, "filter", "show", "dev", *place) for place in places]


def test_filters(world: World, quiet: Netns) -> None:
    """One has to be made, one is swapped."""
    here, path = quiet.here, f"/run/netns/{quiet.here}"
    tc(quiet, "qdisc", "add", "dev", "lo", "clsact")  # a new one would stay
    put(world, "clsact/ingress", 1, f"{{interface: veth0, netns: {here}}}")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        swapped = f"{{interface: veth0, netns: {here}}}"
        put(world, "clsact/ingress", 1000, f"{{interface: lo, netns: {path}}}", swapped)
        look = functools.partial(filters, quiet)
        failed = fail_at_each_step(world, keeper, force=False, elsewhere=look)
        before = world.events()
        quiet.send(3)
        assert world.events() == (before[0] + 3, before[1] + 3000)
        assert plan_now(world) == ()
        failed |= fail_at_each_step(world, keeper, force=True, elsewhere=look)
        assert plan_now(world) == ()
    assert {Step.RECORD, Step.ATTACH, Step.SWAP, Step.COMMIT_PROGRAMS} <= failed


def test_a_filter_that_changes_sides(world: World, quiet: Netns) -> None:
    target = f"{{interface: veth0, netns: {quiet.here}}}"
    put(world, "clsact/ingress", 1, target)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        put(world, "clsact/egress", 1, target)
        look = functools.partial(filters, quiet)
        failed = fail_at_each_step(world, keeper, force=False, elsewhere=look)
        assert plan_now(world) == ()
    assert {Step.RECORD, Step.ATTACH} <= failed


def served(world: World, pair: Netns) -> tuple[int, int]:
    """Events and steps of three packets; the kernel takes a link down some time after its pin."""
    before = world.events()
    pair.send(3)
    after = world.events()
    assert after[0] >= before[0] + 3, "some were missed"
    return after[0] - before[0], after[1] - before[1]


def wait_served(world: World, pair: Netns, step: int) -> None:
    """By the new program alone."""
    world.wait(lambda: served(world, pair) == (3, 3 * step))


def test_netfilter(world: World, quiet: Netns) -> None:
    skip_without_section("netfilter")
    target = f"{{netfilter: ipv4/local_in, priority: 10, netns: {quiet.here}}}"
    put(world, "netfilter", 1, target)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        for step in (10, 100, 1000):  # there and back again
            put(world, "netfilter", step, target, target.replace("local_in", "forward"))
            failed = fail_at_each_step(world, keeper, force=False)
            assert {Step.SWAP, Step.COMMIT_LINK} <= failed
            assert len(world.link_ids()) == 2
            wait_served(world, quiet, step)
            assert plan_now(world) == ()
