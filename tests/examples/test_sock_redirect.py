"""Sockets that are short-circuited: a SOCKHASH, filled by sockops and read by sk_msg."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.examples.conftest import Example, MakeExample
from tests.examples.fullness import used
from tests.machine import inside_cgroup

SHORT_CUT, USUAL_WAY = range(2)

Connection = tuple[socket.socket, socket.socket]


def messages(sock_redirect: Example, way: int) -> tuple[int, int]:
    """Messages and bytes that went one way."""
    found = sock_redirect.contents("redirected")[struct.pack("=I", way)]
    count, size = struct.unpack("=QQ", found)
    return count, size


@contextmanager
def connection(cgroup: Path, host: str = "127.0.0.1") -> Iterator[Connection]:
    """Both ends of a connection, with both in the cgroup."""
    ipv6 = ":" in host
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with (
        inside_cgroup(cgroup),
        socket.create_server((host, 0), family=family, dualstack_ipv6=ipv6) as listener,
    ):
        client = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
        server, _ = listener.accept()
    with client, server:
        yield client, server


def segments_out(sock: socket.socket) -> int:
    """How many TCP segments with data a socket has sent: struct tcp_info, tcpi_data_segs_out."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (data_segments,) = struct.unpack_from("=I", info, 156)
    return int(data_segments)


def exchange(ends: Connection, text: bytes) -> None:
    """The text there and back."""
    for sender, receiver in (ends, ends[::-1]):
        sender.sendall(text)
        assert receiver.recv(len(text), socket.MSG_WAITALL) == text


def test_a_short_cut_outlives_the_program(example: MakeExample, cgroup: Path) -> None:
    sock_redirect = example("sock_redirect", {"system.slice": str(cgroup)})
    with sock_redirect.keeper() as keeper:
        ids = sock_redirect.map_ids()
        assert set(ids) == {"local_sockets", "redirected"}
        with connection(cgroup) as old:
            exchange(old, b"before")
            assert messages(sock_redirect, SHORT_CUT) == (2, 12)
            assert segments_out(old[0]) == segments_out(old[1]) == 0  # TCP has not seen any of it

            sock_redirect.reload(keeper, force=True)
            assert sock_redirect.map_ids() == ids
            exchange(old, b"between")  # with the new program, although the socket is older
            assert messages(sock_redirect, SHORT_CUT) == (4, 26)
            with connection(cgroup, "::") as new:
                exchange(old, b"after")
                exchange(new, b"new")
                assert messages(sock_redirect, SHORT_CUT) == (8, 42)
                assert segments_out(old[0]) == segments_out(new[0]) == 0
                assert used(sock_redirect) == {"local_sockets": 4}
        assert messages(sock_redirect, USUAL_WAY) == (0, 0)


def test_an_end_outside_goes_the_usual_way(example: MakeExample, cgroup: Path) -> None:
    sock_redirect = example("sock_redirect", {"system.slice": str(cgroup)})
    with sock_redirect.keeper():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with inside_cgroup(cgroup):
                client = socket.create_connection(listener.getsockname())
            with client, listener.accept()[0] as server:
                exchange((client, server), b"hello")
                assert segments_out(client) == 1
        assert messages(sock_redirect, SHORT_CUT) == (0, 0)
        assert messages(sock_redirect, USUAL_WAY) == (1, 5)
