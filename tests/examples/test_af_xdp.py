"""AF_XDP sockets of somebody else's, in a kept XSKMAP: a reload leaves them where they are."""

import socket
import struct

import pytest

from bpfkeeperd import kernel
from tests.examples.conftest import Example, MakeExample
from tests.examples.fullness import used
from tests.examples.xdp_socket import XdpSocket, xdp_sockets
from tests.machine import Netns, map_value

PORT = 9


def put_in(example: Example, slot: int, sock: XdpSocket) -> None:
    """What the owner of a socket does to be given packets."""
    found = kernel.pinned_map(str(example.map_path("xdp_sockets")))
    assert found
    with kernel.holding(found[0]):
        kernel.map_update(found[0], struct.pack("=I", slot), struct.pack("=I", sock.fileno()))


def counted(example: Example) -> tuple[int, int]:
    """Packets redirected and passed, of queue 0."""
    value = map_value(example.map_path("xdp_queues"), bytes(4), 24)
    assert value
    redirected, passed, _ = struct.unpack("=QQQ", value)
    return redirected, passed


@pytest.fixture
def af_xdp(example: MakeExample, netns: Netns) -> Example:
    return example("af_xdp", {"interface: eth0": f"interface: veth0, netns: {netns.here}"})


def send(netns: Netns, *texts: str) -> None:
    with netns.inside(netns.there), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for text in texts:
            sender.sendto(text.encode(), (netns.here_address, PORT))


def receive(sock: XdpSocket, count: int) -> list[str]:
    """What the next UDP packets say, after their Ethernet, IPv4 and UDP headers."""
    return [frame[14 + 20 + 8 :].decode() for frame in sock.receive(count)]


def test_sockets_keep_their_slots(af_xdp: Example, netns: Netns) -> None:
    with af_xdp.keeper() as keeper, netns.inside(netns.here):
        index = kernel.interface_index("veth0")
        ids = af_xdp.map_ids()
        assert set(ids) == {"xdp_sockets", "xdp_queues"}
        with xdp_sockets(index, 2) as (first, second):
            put_in(af_xdp, 0, first)
            put_in(af_xdp, 1, second)
            send(netns, "a", "b", "c", "d")
            assert (receive(first, 2), receive(second, 2)) == (["a", "c"], ["b", "d"])

            af_xdp.reload(keeper, force=True)
            assert af_xdp.map_ids() == ids
            send(netns, "e", "f", "g", "h")
            assert (receive(first, 2), receive(second, 2)) == (["e", "g"], ["f", "h"])
            assert counted(af_xdp) == (8, 0)
            assert used(af_xdp) == {"xdp_sockets": 2}
            assert first.is_empty() and second.is_empty()


def test_a_packet_without_a_socket_goes_to_the_stack(af_xdp: Example, netns: Netns) -> None:
    with af_xdp.keeper() as keeper, netns.inside(netns.here):
        index = kernel.interface_index("veth0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.settimeout(5)
            receiver.bind((netns.here_address, PORT))
            send(netns, "a")
            assert receiver.recv(9) == b"a"
            with xdp_sockets(index, 1) as (only,):
                put_in(af_xdp, 3, only)
                send(netns, "b", "c")
                assert receive(only, 2) == ["b", "c"]
            assert used(af_xdp) == {"xdp_sockets": 0}
            af_xdp.reload(keeper, force=True)
            send(netns, "d")  # the slot is empty again: its socket is closed
            assert receiver.recv(9) == b"d"
        assert counted(af_xdp) == (2, 2)
