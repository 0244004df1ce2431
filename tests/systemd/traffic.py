"""Datagrams that are sent all the while, and counted by whoever sends them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.machine import Netns

_SEND = """
import select, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
sender, sent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0
while True:
    if select.select([0], [], [], 0.001)[0]:
        if not sys.stdin.readline():
            break
        print(sent, flush=True)
        sys.stdin.readline()
    sender.sendto(b"x" * 32, (sys.argv[2], 9))
    sent += 1
"""


class Sender:
    """A process in a cgroup that sends some hundred datagrams a second over a veth pair."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def _say(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    @contextmanager
    def paused(self) -> Iterator[int]:
        """Sends nothing meanwhile; how many it has sent so far."""
        self._say()
        assert self._process.stdout
        yield int(self._process.stdout.readline())
        self._say()


@contextmanager
def sending(pair: Netns, cgroup: Path) -> Iterator[Sender]:
    """From there to here."""
    words = [sys.executable, "-ISc", _SEND, str(cgroup), pair.here_address]
    with pair.inside(pair.there):
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
    try:
        yield Sender(process)
    finally:
        process.kill()
        process.communicate()
