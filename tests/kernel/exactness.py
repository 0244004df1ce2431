"""Events that are counted on both sides, so that one that is missed or seen twice is noticed."""

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bpfkeeperd import kernel
from tests.scenario import World, contents

GETPGID = {"x86_64": 121, "aarch64": 155}[os.uname().machine]
_CALLER = """
import ctypes, sys, threading
getpgid, stop = ctypes.CDLL(None).getpgid, []
sys.stdin.readline()
threading.Thread(target=lambda: stop.append(sys.stdin.read())).start()
calls = 0
while not stop:
    getpgid(0)
    calls += 1
print(calls)
"""


class Caller:
    """A process that calls getpgid(2) from `go` to `stop`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CALLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self._process.pid

    def go(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def stop(self) -> int:
        """How many calls it made."""
        out, _ = self._process.communicate()
        return int(out)


def seen(world: World, name: str = "seen") -> list[tuple[int, int]]:
    """Events and bytes that each version of tests/bpf/exact.bpf.c has seen."""
    found = contents(world.pins / name)
    return [struct.unpack("=QQ", value or bytes(16)) for _, value in sorted(found.items())]


def total(world: World, name: str = "seen") -> tuple[int, int]:
    counts = seen(world, name)
    return sum(events for events, _ in counts), sum(size for _, size in counts)


@contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client, server


def put_socket(world: World, name: str, key: int, sock: socket.socket) -> None:
    """Adds a socket to a pinned SOCKMAP or SOCKHASH with 8-byte values."""
    found = kernel.pinned_map(str(world.pins / name))
    assert found
    with kernel.holding(found[0]) as fd:
        kernel.map_update(fd, struct.pack("=I", key), struct.pack("=Q", sock.fileno()))


@contextmanager
def messages(sender: socket.socket, receiver: socket.socket) -> Iterator[list[int]]:
    """Sends messages and reads them until the block is over; then the list has how many there were
    and how many bytes."""
    stop, sent = threading.Event(), [0, 0]

    def send() -> None:
        size = 0
        while not stop.is_set():
            size = size % 97 + 1
            sender.sendall(b"x" * size)
            sent[0] += 1
            sent[1] += size
            got = 0
            while got < size:
                got += len(receiver.recv(size - got))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()
