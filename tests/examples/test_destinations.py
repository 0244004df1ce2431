"""Packets and bytes for each destination: in a hash that says how full it is before it is full."""

import errno
import ipaddress
import socket
import struct

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.errors import KernelError
from bpfkeeperd.instruments import Instruments
from tests.examples.attaching import attach_filter
from tests.examples.conftest import Example, MakeExample
from tests.examples.traffic import IPV6_HERE, send_ipv6
from tests.machine import Netns, inside_cgroup

CAPACITY = 10240
PACKET = 20 + 8 + 4
"""IPv4 and UDP headers, and what is sent."""

ETH_P_ALL = 3


def key(address: str) -> bytes:
    return ipaddress.IPv6Address(address).packed


def address(number: int) -> str:
    """Of this machine, and one of many: in the range for loopback, as an IPv6 address."""
    return f"::ffff:{ipaddress.IPv4Address('127.1.0.0') + number}"


def send(sender: socket.socket, first: int, end: int) -> None:
    for number in range(first, end):
        sender.sendto(b"data", (address(number).removeprefix("::ffff:"), 9))


def counted(example: Example, to: str) -> tuple[int, int]:
    packets, size = struct.unpack("=QQ", example.contents("destinations")[key(to)])
    return packets, size


def fill_ratio(instruments: Instruments) -> float:
    """As Prometheus is told."""
    text, _ = instruments.metrics.render()
    sample = 'bpfkeeper_map_fill_ratio{map="destinations"} '
    (line,) = (line for line in text.decode().splitlines() if line.startswith(sample))
    return float(line.removeprefix(sample))


def test_what_a_cgroup_sends_until_the_map_is_full(example: MakeExample) -> None:
    destinations = example("destinations")
    world = destinations.world
    destinations.edit("cgroup: system.slice", f"cgroup: {world.cgroup}")
    with (
        destinations.keeper() as keeper,
        Instruments(lambda: keeper.status) as instruments,
        inside_cgroup(world.cgroup),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        ids = destinations.map_ids()
        assert list(ids) == ["destinations"]
        assert fill_ratio(instruments) == 0
        send(sender, 0, CAPACITY * 9 // 10)
        assert fill_ratio(instruments) == pytest.approx(0.9)
        before = destinations.contents("destinations")
        assert before.keys() == {key(address(number)) for number in range(CAPACITY * 9 // 10)}
        destinations.reload(keeper, force=True)
        assert destinations.map_ids() == ids
        assert destinations.contents("destinations") == before

        send(sender, 0, CAPACITY + 100)
        assert fill_ratio(instruments) == 1
        after = destinations.contents("destinations")
        assert len(after) == CAPACITY
        assert counted(destinations, address(0)) == (2, 2 * PACKET)
        assert counted(destinations, address(CAPACITY - 1)) == (1, PACKET)
        assert key(address(CAPACITY)) not in after
        found = kernel.pinned_map(str(destinations.map_path("destinations")))
        assert found
        with kernel.holding(found[0]), pytest.raises(KernelError) as refused:
            kernel.map_update(found[0], key("::ffff:192.0.2.1"), bytes(16))
        assert refused.value.errno == errno.E2BIG
        send(sender, 0, 1)  # those that are in it go on
        assert counted(destinations, address(0)) == (3, 3 * PACKET)


def test_what_a_packet_socket_sees(example: MakeExample, netns: Netns) -> None:
    destinations = example("destinations")
    destinations.edit("cgroup: system.slice", f"cgroup: {destinations.world.cgroup}")
    size = 20 + 8 + 32  # as Netns.send sends
    with netns.inside(netns.here):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    with sock, destinations.keeper() as keeper:
        attach_filter(sock, destinations.pinned_program("destinations", "filter_destinations"))
        sock.bind(("veth0", ETH_P_ALL))
        netns.send(3)
        assert counted(destinations, f"::ffff:{netns.here_address}") == (3, 3 * size)
        ids = destinations.map_ids()
        destinations.reload(keeper, force=True)
        attach_filter(sock, destinations.pinned_program("destinations", "filter_destinations"))
        netns.send(2)
        assert destinations.map_ids() == ids
        assert counted(destinations, f"::ffff:{netns.here_address}") == (5, 5 * size)
        send_ipv6(netns, 2)
        assert counted(destinations, IPV6_HERE) == (2, 2 * (size + 20))
