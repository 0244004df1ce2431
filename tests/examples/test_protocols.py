"""Packets and bytes for each IP protocol: in an array, by XDP or by a socket filter."""

import socket
import struct

from tests.examples.attaching import attach_filter
from tests.examples.conftest import Example, MakeExample
from tests.examples.traffic import send_ipv6
from tests.machine import Netns

UDP = struct.pack("=I", socket.IPPROTO_UDP)
FRAME = 14 + 20 + 8 + 32
"""Ethernet, IPv4 and UDP headers, and what `Netns.send` sends."""

ETH_P_ALL = 3


def counted(example: Example, protocol: bytes = UDP) -> tuple[int, int]:
    packets, size = struct.unpack("=QQ", example.contents("protocols")[protocol])
    return packets, size


def test_what_an_interface_receives(example: MakeExample, netns: Netns) -> None:
    protocols = example("protocols", {"interface: eth0": f"interface: veth0, netns: {netns.here}"})
    with protocols.keeper() as keeper:
        ids = protocols.map_ids()
        assert list(ids) == ["protocols"]
        netns.send(3)
        assert counted(protocols) == (3, 3 * FRAME)
        protocols.reload(keeper, force=True)
        assert protocols.map_ids() == ids
        netns.send(2)
        assert counted(protocols) == (5, 5 * FRAME)
        send_ipv6(netns, 1)  # its header is 20 bytes longer
        assert counted(protocols) == (6, 6 * FRAME + 20)


def test_what_a_packet_socket_sees(example: MakeExample, netns: Netns) -> None:
    protocols = example("protocols", {"interface: eth0": f"interface: veth0, netns: {netns.here}"})
    protocols.edit("        attach: [{interface: veth0", "        #attach: [{interface: veth0")
    with netns.inside(netns.here):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    with sock, protocols.keeper() as keeper:
        ids = protocols.map_ids()
        attach_filter(sock, protocols.pinned_program("protocols", "filter_protocols"))
        sock.bind(("veth0", ETH_P_ALL))
        netns.send(3)
        assert counted(protocols) == (3, 3 * FRAME)
        netns.send(1, backwards=True)  # a packet socket sees both directions
        assert counted(protocols) == (4, 4 * FRAME)
        protocols.reload(keeper, force=True)
        assert protocols.map_ids() == ids
        netns.send(2)  # the socket's program is still the one before, on the same map
        assert counted(protocols) == (6, 6 * FRAME)
        attach_filter(sock, protocols.pinned_program("protocols", "filter_protocols"))
        netns.send(2)
        send_ipv6(netns, 1)
        assert counted(protocols) == (9, 9 * FRAME + 20)
        try:
            received = len(sock.recv(1))
        except BlockingIOError:
            received = 0
        assert received == 0, "not a single packet is handed up"
