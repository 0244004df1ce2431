"""Connections and remote addresses in LRU hashes, by TCX programs of both directions."""

import ipaddress
import socket
import struct
from dataclasses import dataclass

from bpfkeeperd import kernel
from tests.examples.conftest import Example, MakeExample
from tests.examples.fullness import used
from tests.machine import Netns, ip

KEY = struct.Struct("=16s16s2s2sI")
SEEN = struct.Struct("=QQQQQQI4x")
BOTH = struct.Struct("=QQQQ")
PORT = 9
SIZE = 20 + 8 + 32
"""IPv4 and UDP headers, and what `Netns.send` sends."""
FIN, SYN, ACK = 1, 2, 16


@dataclass(frozen=True, slots=True)
class Seen:
    first_ns: int
    last_ns: int
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    tcp_flags: int


Key = tuple[str, int, str, int, int]
"""Local and remote address and port, protocol."""


def address(value: bytes) -> str:
    mapped = ipaddress.IPv6Address(value)
    return str(mapped.ipv4_mapped or mapped)


def connections(example: Example) -> dict[Key, Seen]:
    found = {}
    for key, value in example.contents("connections").items():
        local, remote, local_port, remote_port, protocol = KEY.unpack(key)
        ports = int.from_bytes(local_port, "big"), int.from_bytes(remote_port, "big")
        end = (address(local), ports[0], address(remote), ports[1])
        found[*end, protocol] = Seen(*SEEN.unpack(value))
    return found


def remotes(example: Example) -> dict[str, tuple[int, ...]]:
    """Remote address to packets and bytes in, packets and bytes out, on all CPUs together."""
    found = {}
    for key, values in example.contents("remotes").items():
        each = [BOTH.unpack_from(values, BOTH.size * cpu) for cpu in range(kernel.possible_cpus())]
        found[address(key)] = tuple(map(sum, zip(*each, strict=True)))
    return found


def udp(example: Example) -> dict[Key, Seen]:
    """Without what IPv6 says on its own when an interface comes up."""
    return {key: seen for key, seen in connections(example).items() if key[4] == 17}


def make(example: MakeExample, netns: Netns) -> Example:
    return example("connections", {"interface: eth0": f"interface: veth0, netns: {netns.here}"})


def bound(name: str, address: str, port: int) -> socket.socket:
    """A UDP socket in a namespace."""
    with kernel.inside_netns(kernel.netns_path(name)):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind((address, port))
    return sock


def send(sender: socket.socket, receiver: socket.socket, packets: int) -> None:
    """Sends packets one at a time, each when the one before has arrived."""
    for _ in range(packets):
        sender.sendto(b"x" * 32, receiver.getsockname())
        assert receiver.recv(33) == b"x" * 32


def test_a_connection_goes_on_over_a_reload(example: MakeExample, netns: Netns) -> None:
    tracked = make(example, netns)
    key = (netns.here_address, PORT, netns.there_address, 4000, 17)
    near = bound(netns.here, netns.here_address, PORT)
    far = bound(netns.there, netns.there_address, 4000)
    with near, far, tracked.keeper() as keeper:
        ids = tracked.map_ids()
        assert set(ids) == {"connections", "remotes"}
        send(far, near, 3)
        before = udp(tracked)
        assert list(before) == [key]
        assert before[key].packets_in == 3 and before[key].bytes_in == 3 * SIZE
        assert before[key].packets_out == 0

        tracked.reload(keeper, force=True)
        assert tracked.map_ids() == ids
        assert udp(tracked) == before
        send(far, near, 2)
        send(near, far, 1)
        after = udp(tracked)
        assert list(after) == [key]
        assert after[key].first_ns == before[key].first_ns < after[key].last_ns
        assert (after[key].packets_in, after[key].bytes_in) == (5, 5 * SIZE)
        assert (after[key].packets_out, after[key].bytes_out) == (1, SIZE)
        assert remotes(tracked)[netns.there_address][:2] == (5, 5 * SIZE)


def test_ipv6(example: MakeExample, netns: Netns) -> None:
    tracked = make(example, netns)
    for name, local in ((netns.here, "fd77::1"), (netns.there, "fd77::2")):
        ip("-n", name, "address", "add", f"{local}/64", "dev", "veth0", "nodad")
    with tracked.keeper(), netns.inside(netns.here):
        with socket.create_server(("fd77::1", 8000), family=socket.AF_INET6) as listener:
            with netns.inside(netns.there):
                client = socket.create_connection(("fd77::1", 8000))
            with client, listener.accept()[0] as server:
                port = client.getsockname()[1]
                client.sendall(b"hello")
                assert server.recv(5, socket.MSG_WAITALL) == b"hello"
                client.close()
                assert server.recv(1) == b""
        far, near = bound(netns.there, "fd77::2", 4000), bound(netns.here, "fd77::1", PORT)
        with far, near:
            send(far, near, 2)
        seen = connections(tracked)["fd77::1", PORT, "fd77::2", 4000, 17]
        assert (seen.packets_in, seen.bytes_in) == (2, 2 * (40 + 8 + 32))
        seen = connections(tracked)["fd77::1", 8000, "fd77::2", port, 6]
        assert seen.tcp_flags & (FIN | SYN | ACK) == FIN | SYN | ACK
        assert seen.packets_in >= 4 and seen.packets_out >= 2


def test_it_never_fills_up(example: MakeExample, netns: Netns) -> None:
    tracked = make(example, netns)
    tracked.put("connections", CONNECTIONS_MAX=256)
    near = bound(netns.here, netns.here_address, PORT)
    with near, tracked.keeper() as keeper:
        for port in range(10000, 12000):
            with bound(netns.there, netns.there_address, port) as sender:
                send(sender, near, 1)
            if port == 11000:
                tracked.reload(keeper, force=True)
        newest = (netns.here_address, PORT, netns.there_address, 11999, 17)
        found = udp(tracked)
        assert found[newest].packets_in == 1
        # Not compared with each other: one packet of IPv6's own evicts up to 128 at once.
        assert 0 < len(found) <= 256
        assert 0 < used(tracked)["connections"] <= 256
        (packets, size, *_) = remotes(tracked)[netns.there_address]
        assert (packets, size) == (2000, 2000 * SIZE)  # most of whose connections made room
