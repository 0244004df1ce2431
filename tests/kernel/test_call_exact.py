"""Programs at most hooks of a cgroup are exchanged a thousand times while a process makes calls
that carry numbers: none is missed, none is seen twice."""

import mmap
import struct
import subprocess
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.hooks import hook_of_section
from bpfkeeperd.state import ReloadResult
from tests.machine import inside_cgroup, map_value, skip_without
from tests.scenario import World

SWAPS = 1000
EVENTS = 1 << 20
PORT, LEVEL = 7803, 0x4242
HOOKS = (
    "bind4",
    "post_bind4",
    "connect4",
    "sendmsg4",
    "recvmsg4",
    "getpeername4",
    "getsockname4",
    "setsockopt",
    "getsockopt",
    "sysctl",
    "dev",
    "sock_create",
    "sock_release",
)
"""As ``enum kind`` of tests/bpf/calls.bpf.c has them."""


def put(world: World, version: int) -> None:
    world.put("one", "calls", VERSION=version, EVENTS=EVENTS, PORT=PORT, LEVEL=LEVEL)


def by_version(world: World, kind: int) -> tuple[int, ...]:
    value = map_value(world.pins / "versions", bytes(4), len(HOOKS) * 4 * 8) or b""
    return struct.unpack_from("=3Q", value, kind * 24)[1:]


def test_no_call_is_missed(world: World) -> None:
    for name in HOOKS:
        hook = hook_of_section(f"cgroup/{name}")
        assert hook
        skip_without(hook)
    programs = ", ".join(f"{name}: {{attach: [{{cgroup: CGROUP}}]}}" for name in HOOKS)
    world.write(
        f"objects: {{one: {{file: one.bpf.o, pin_maps: [times, versions],\n"
        f"  programs: {{{programs}}}}}}}\n"
    )
    source, caller = Path(__file__).with_name("caller.c"), world.directory / "caller"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", caller, source], check=True)
    put(world, 2)
    put(world, 1)
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        links = {path: ids[0] for path, ids in world.link_ids().items()}
        with inside_cgroup(world.cgroup):
            command = [str(caller), str(PORT), str(LEVEL), str(EVENTS)]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        try:
            world.wait(lambda: by_version(world, HOOKS.index("sock_release"))[0] > 100)
            for turn in range(SWAPS):
                put(world, 2 - turn % 2)
                assert len(world.reload(keeper).done) == 1 + len(HOOKS)
        finally:
            output, _ = process.communicate()
        assert process.returncode == 0
        made = int(output)
        assert made + 1 < EVENTS, "it had made all it may before the end"
        assert {path: ids[0] for path, ids in world.link_ids().items()} == links
    found = kernel.pinned_map(str(world.pins / "times"))
    assert found
    with kernel.holding(found[0]), mmap.mmap(found[0], len(HOOKS) * EVENTS) as noted:
        for kind, name in enumerate(HOOKS):
            # Sockets are counted from 0 on; there is one more, which is there all the while.
            first, wanted = (0, made + 1) if name.startswith("sock_") else (1, made)
            times = noted[kind * EVENTS + first :][:wanted]
            missed = times.count(0)
            doubled = wanted - missed - times.count(1)
            print(f"{name}: {made} calls, {missed} missed, {doubled} twice, in {SWAPS} swaps")
            assert (missed, doubled) == (0, 0), name
            assert min(by_version(world, kind)) > 100, name
