"""Clients nobody wants, in a process of their own: 500 that say nothing and 50 that misbehave.

    python -m tests.system.crowd HOST PORT

Whoever is sent away comes again. It ends when its standard input does, and then tells how many
connections were made.
"""

import random
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

SILENT, ABUSIVE = 500, 50
_SEED = 1
_REQUESTS = (
    b"\x16\x03\x01" + bytes(60),
    b"\0" * 4096,
    b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 5000,
    b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + bytes(1000),
    b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n",
    b"DELETE /../../etc/passwd HTTP/9.9\r\n\r\n",
    b"\r\n" * 1000,
    b"GET /metr",
)


class Client:
    """One that comes again as soon as it lost its connection."""

    def __init__(self, address: tuple[str, int], *, abusive: bool) -> None:
        self._address, self._abusive = address, abusive
        self._random = random.Random(_SEED)
        self.socket: socket.socket | None = None

    def connect(self) -> bool:
        """Whether there is a new connection."""
        if self.socket:
            return False
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        if self._abusive:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with suppress(BlockingIOError):
            client.connect(self._address)
        self.socket = client
        return True

    def misbehave(self) -> None:
        """Says something it should not, all at once or bit by bit; sometimes it resets."""
        if not self._abusive or not self.socket:
            return
        request = self._random.choice(_REQUESTS)
        with suppress(OSError):
            self.socket.send(request[: self._random.choice((1, 7, len(request)))])
        if self._random.random() < 0.2:
            with suppress(OSError):  # RST instead of FIN
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()

    def look(self) -> None:
        """Notices that it was sent away; an answer is not read to its end."""
        if not self.socket or self._random.random() < 0.5:
            return
        try:
            if self.socket.recv(64):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        if self.socket:
            self.socket.close()
        self.socket = None


def storm(address: tuple[str, int]) -> Iterator[int]:
    """Goes on for ever; yields how many connections were made."""
    clients = [Client(address, abusive=False) for _ in range(SILENT)]
    clients += [Client(address, abusive=True) for _ in range(ABUSIVE)]
    made = 0
    while True:
        for client in clients:
            made += client.connect()
            client.misbehave()
        yield made
        poll = select.poll()
        known = {}
        for client in clients:
            if client.socket:
                poll.register(client.socket, select.POLLIN)
                known[client.socket.fileno()] = client
        for fd, _ in poll.poll(50):
            known[fd].look()
        time.sleep(0.05)


def main() -> None:
    address = (sys.argv[1], int(sys.argv[2]))
    for made in storm(address):
        if select.select([0], [], [], 0)[0]:
            print(made)
            return


if __name__ == "__main__":
    main()
