"""TCP statistics stored with each socket: they outlive the program that stored them."""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpfkeeperd import kernel
from tests.examples.conftest import Example, MakeExample
from tests.examples.fullness import used
from tests.machine import inside_cgroup

STATS = struct.Struct("=QQQQQIIII")
ESTABLISHED, CLOSE_WAIT = 1, 8
ROUND = 1000


@dataclass(frozen=True, slots=True)
class Stats:
    established_ns: int
    looked_at_ns: int
    looks: int
    bytes_received: int
    bytes_acked: int
    srtt_us: int
    snd_cwnd: int
    retransmitted: int
    state: int


def stats(tcp_stats: Example, sock: socket.socket) -> Stats | None:
    """What is stored with a socket of this process: its descriptor is the key."""
    found = kernel.pinned_map(str(tcp_stats.map_path("tcp_stats")))
    assert found
    with kernel.holding(found[0]):
        value = kernel.map_lookup(found[0], struct.pack("=i", sock.fileno()), STATS.size)
    return Stats(*STATS.unpack(value)) if value else None


@contextmanager
def connection(cgroup: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection of a cgroup."""
    with inside_cgroup(cgroup), socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


def there_and_back(client: socket.socket, server: socket.socket, rounds: int) -> None:
    """Each answer carries the acknowledgement of what it answers."""
    for _ in range(rounds):
        for sender, receiver in ((client, server), (server, client)):
            sender.sendall(b"x" * ROUND)
            assert len(receiver.recv(ROUND, socket.MSG_WAITALL)) == ROUND


def test_storage_outlives_the_program(example: MakeExample, cgroup: Path) -> None:
    tcp_stats = example("tcp_stats", {"system.slice": str(cgroup)})
    start = time.monotonic_ns()
    with tcp_stats.keeper() as keeper, connection(cgroup) as (client, server):
        ids = tcp_stats.map_ids()
        assert list(ids) == ["tcp_stats"]
        first = stats(tcp_stats, client)
        assert first and first.looks >= 1 and first.state == ESTABLISHED and first.snd_cwnd > 0
        assert start < first.established_ns <= first.looked_at_ns < time.monotonic_ns()
        there_and_back(client, server, 3)
        before = stats(tcp_stats, client)
        assert before and before.established_ns == first.established_ns

        tcp_stats.put("tcp_stats", INTERVAL_MS=0)
        tcp_stats.reload(keeper)
        assert tcp_stats.map_ids() == ids
        assert stats(tcp_stats, client) == before  # nothing was sent meanwhile
        assert used(tcp_stats) == {"tcp_stats": 2}  # sockets: both ends
        there_and_back(client, server, 5)
        after = stats(tcp_stats, client)
        assert after and after.looks >= before.looks + 5  # each round trip, with the new program
        assert after.established_ns == first.established_ns < after.looked_at_ns
        assert after.bytes_acked - first.bytes_acked == 8 * ROUND
        assert after.srtt_us > 0 and after.state == ESTABLISHED
        other = stats(tcp_stats, server)  # last looked at before or after the last of it came
        assert other and 7 * ROUND <= other.bytes_received <= 8 * ROUND

        tcp_stats.reload(keeper, force=True)
        assert tcp_stats.map_ids() == ids
        there_and_back(client, server, 1)
        last = stats(tcp_stats, client)
        assert last and last.bytes_acked - first.bytes_acked == 9 * ROUND
        server.close()
        assert client.recv(1) == b""
        closing = stats(tcp_stats, client)
        assert closing and closing.state == CLOSE_WAIT
        assert closing.established_ns == first.established_ns


def test_other_sockets_have_none(example: MakeExample, cgroup: Path) -> None:
    tcp_stats = example("tcp_stats", {"system.slice": str(cgroup)})
    with tcp_stats.keeper(), socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as outside:
            assert stats(tcp_stats, outside) is None
        with connection(cgroup) as (client, server):
            ends = [stats(tcp_stats, end) for end in (client, server)]
            assert all(end and end.state == ESTABLISHED for end in ends)
