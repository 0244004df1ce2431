"""Every hook of the table is attached, swapped, and given up again, on the real kernel."""

import pytest

from bpfkeeperd.hooks import HOOKS, Hook, HookKind
from bpfkeeperd.state import ReloadResult
from tests.kernel.test_reload import plan_now
from tests.machine import Netns, skip_without, skip_without_section
from tests.scenario import World

CGROUP_HOOKS = [
    hook for hook in HOOKS if hook.kind is HookKind.CGROUP and hook.name != "lsm_cgroup"
]


def write(world: World, target: str) -> None:
    programs = "{program: {attach: [" + target + "]}}"
    world.write("objects: {one: {file: one.bpf.o, programs: " + programs + "}}\n")


@pytest.mark.parametrize("hook", CGROUP_HOOKS, ids=lambda hook: str(hook.name))
def test_cgroup_hook(world: World, hook: Hook) -> None:
    skip_without(hook)
    world.put("one", "verdict", HOOK=f'"{hook.name}"')
    write(world, "{cgroup: CGROUP}")
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        (before,) = world.link_ids().values()
        assert all(attachment.up for attachment in keeper.status.attachments)
        assert world.reload(keeper, force=True).result is ReloadResult.OK
        (after,) = world.link_ids().values()
        assert after[0] == before[0] and after[1] != before[1]
        assert plan_now(world) == ()
        world.write("objects: {}\n")
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.link_ids() == {}


@pytest.mark.parametrize("section", ["cgroup/sock", "?cgroup_skb/egress"])
def test_other_spellings_of_a_cgroup_hook(world: World, section: str) -> None:
    world.put("one", "verdict", HOOK=f'"{section}"')
    write(world, "{cgroup: CGROUP}")
    assert world.apply().result is ReloadResult.OK
    assert len(world.link_ids()) == 1


@pytest.mark.parametrize("section", ["xdp", "xdp.frags", "xdp/old_spelling", "tc/ingress"])
def test_other_spellings_of_an_interface_hook(world: World, netns: Netns, section: str) -> None:
    skip_without_section(section)
    world.put("one", "verdict", HOOK=f'"{section}"', VERDICT=2 if "xdp" in section else -1)
    write(world, f"{{interface: veth0, netns: {netns.here}}}")
    assert world.apply().result is ReloadResult.OK
    assert len(world.link_ids()) == 1


@pytest.mark.parametrize("section", ["socket", "tc", "tracepoint/sched/sched_switch", "sk_lookup"])
def test_loaded_and_pinned_only(world: World, section: str) -> None:
    world.put("one", "verdict", HOOK=f'"{section}"')
    world.write("objects: {one: {file: one.bpf.o}}\n")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.reload(keeper).done == ()
    assert any(path.endswith("/program") for path in world.everything() if "objects/" in path)
    assert plan_now(world) == ()


def test_hook_that_cannot_be_attached_yet(world: World) -> None:
    world.put("one", "verdict", HOOK='"socket"')
    write(world, "{cgroup: CGROUP}")
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
    assert outcome.result is ReloadResult.REJECTED
    assert 'its section "socket" names no hook that a program is attached to from here' in (
        outcome.failures[0].message
    )


def test_xdp_program_at_a_cgroup(world: World) -> None:
    world.put("one", "verdict", HOOK='"xdp"', VERDICT=2)
    write(world, "{cgroup: CGROUP}")
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
    assert outcome.result is ReloadResult.REJECTED
    assert 'its section "xdp" belongs to an interface: write interface: NAME' in (
        outcome.failures[0].message
    )
