"""A filter on what an interface sends, by cgroup; its map is where tc would pin it."""

import socket
import struct

from tests.examples.conftest import Example, MakeExample
from tests.machine import Netns, inside_cgroup

BLOCKED = "tc/globals/blocked_cgroups"


def filtered(example: Example) -> tuple[int, ...]:
    """Packets passed and dropped, and the version of the program that was there last."""
    (value,) = example.contents("tc/globals/filtered_packets").values()
    return struct.unpack("=QQQ", value)


def start(example: MakeExample, netns: Netns) -> Example:
    made = example(
        "cgroup_filter",
        {"{interface: eth0}": f"{{interface: veth0, netns: {netns.here}}}"},
    )
    made.edit("system.slice/untrusted.service", f"{made.world.cgroup}/blocked")
    for name in ("blocked", "blocked/child", "other"):
        (made.world.cgroup / name).mkdir()
    return made


def sent(example: Example, netns: Netns, cgroup: str) -> tuple[int, int]:
    """How many of three packets of a process in a cgroup arrived, and how many were dropped."""
    with netns.inside(netns.there):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver:
        receiver.bind((netns.there_address, 9))
        receiver.settimeout(10)
        before = filtered(example)
        with inside_cgroup(example.world.cgroup / cgroup):
            netns.send(3, backwards=True)
        after = filtered(example)
        dropped = after[1] - before[1]
        arrived = sum(len(receiver.recv(64)) == 32 for _ in range(3 - dropped))
        assert after[0] - before[0] >= arrived  # the kernel sends too: ARP, ICMPv6
    return arrived, dropped


def test_cgroups_that_cannot_send(example: MakeExample, netns: Netns) -> None:
    made = start(example, netns)
    with made.keeper() as keeper:
        ids = made.map_ids()
        assert {BLOCKED, "tc/globals/filtered_packets"} == ids.keys()
        assert sent(made, netns, "other") == (3, 0)
        assert sent(made, netns, "blocked") == (0, 3)
        assert sent(made, netns, "blocked/child") == (0, 3)

        made.put("cgroup_filter", VERSION=2)
        made.reload(keeper)
        assert made.map_ids() == ids and filtered(made)[1] == 6
        assert sent(made, netns, "blocked") == (0, 3)
        assert sent(made, netns, "other") == (3, 0)
        assert filtered(made)[1:] == (9, 2)

        # Another cgroup in the manifest: a reload puts it in, and touches no program.
        made.edit(f"{made.world.cgroup}/blocked", f"{made.world.cgroup}/other")
        made.reload(keeper)
        assert made.map_ids() == ids
        assert sent(made, netns, "blocked") == (3, 0)
        assert sent(made, netns, "other") == (0, 3)


def test_a_cgroup_that_is_made_again(example: MakeExample, netns: Netns) -> None:
    """As systemd does with that of a restarted service: it is another one, under the same path."""
    made = start(example, netns)
    blocked = made.world.cgroup / "blocked"
    with made.keeper() as keeper:
        ids = made.map_ids()
        (blocked / "child").rmdir()
        blocked.rmdir()
        blocked.mkdir()
        assert sent(made, netns, "blocked") == (3, 0)
        made.reload(keeper)
        assert made.map_ids() == ids
        assert sent(made, netns, "blocked") == (0, 3)
