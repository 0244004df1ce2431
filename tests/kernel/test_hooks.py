"""Every hook of the table is attached, swapped, and given up again, on the real kernel."""

import socket

import pytest

from bpfkeeperd.hooks import HOOKS, Hook, HookKind
from bpfkeeperd.state import ReloadResult
from tests.kernel.test_reload import plan_now
from tests.machine import Netns, inside_cgroup, skip_without, skip_without_section
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


def bind_sockets(world: World, count: int) -> tuple[int, int]:
    """Binds sockets in the cgroup; how many of them were seen, and the steps counted."""
    before = world.events()
    with inside_cgroup(world.cgroup):
        for _ in range(count):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
                bound.bind(("127.0.0.1", 0))
    after = world.events()
    return after[0] - before[0], after[1] - before[1]


def test_lsm_cgroup(world: World) -> None:
    """A function of the kernel's security hooks, for what a cgroup does."""
    skip_without_section("lsm_cgroup/socket_bind")
    manifest = "objects: {one: {file: one.bpf.o, pin_maps: [counts]%s}}\n"
    world.put("one", HOOK='"lsm_cgroup/socket_bind"')
    world.write(manifest % ", programs: {count: {attach: [{cgroup: CGROUP}]}}")
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert bind_sockets(world, 3) == (3, 3)
        links = world.link_ids()
    assert bind_sockets(world, 3) == (3, 3), "not served without the keeper"
    with world.keeper() as keeper:
        assert world.reload(keeper).done == (), "not adopted as it was"
        for step in (1000, 1, 1000):
            world.put("one", HOOK='"lsm_cgroup/socket_bind"', STEP=step)
            assert world.reload(keeper).result is ReloadResult.OK
            assert bind_sockets(world, 3) == (3, 3 * step)
        swapped = world.link_ids()
        assert {path: ids[0] for path, ids in swapped.items()} == {
            path: ids[0] for path, ids in links.items()
        }
        assert plan_now(world) == ()
        world.put("one", HOOK='"lsm_cgroup/socket_listen"')
        assert world.reload(keeper).result is ReloadResult.OK
        assert bind_sockets(world, 3) == (0, 0), "its function is another now"
        assert plan_now(world) == ()
        world.put("one", HOOK='"lsm_cgroup/socket_bind"')
        assert world.reload(keeper).result is ReloadResult.OK
        world.write(manifest % "")
        assert world.reload(keeper).result is ReloadResult.OK
        assert bind_sockets(world, 3) == (0, 0) and world.link_ids() == {}


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
