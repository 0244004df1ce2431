"""Traffic that goes on while something else is done, from a process of its own."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.machine import Netns, ip

_FLOOD = """
import signal, socket, sys
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
sender, receiver = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
sent = 0
while not ended:
    for _ in range(32):
        sender.send(b"x" * 32)
    for _ in range(32):
        receiver.recv(64)
    if not sent:
        print("begun", flush=True)
    sent += 32
print(sent)
"""
"""No faster than the receiver: a packet that is lost on the way would spoil the counts."""


@dataclass(slots=True)
class Flood:
    sent: int = 0
    """Packets in all; known when it is over."""


@contextmanager
def flood(sender: socket.socket, receiver: socket.socket) -> Iterator[Flood]:
    """Sends UDP packets from a connected socket to another for as long as the block runs.

    Every packet has to arrive. They run in the namespaces and cgroups in which the sockets were
    made.
    """
    receiver.settimeout(10)
    fds = (sender.fileno(), receiver.fileno())
    told = Flood()
    with subprocess.Popen(
        [sys.executable, "-c", _FLOOD, *map(str, fds)],
        pass_fds=fds,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout and process.stdout.readline() == "begun\n"
            yield told
            process.send_signal(signal.SIGTERM)
            told.sent = int(process.communicate(timeout=20)[0])
        finally:
            process.kill()
    assert process.returncode == 0


IPV6_HERE, IPV6_THERE = "fd00:77::1", "fd00:77::2"


def send_ipv6(netns: Netns, packets: int) -> None:
    """Sends UDP packets over IPv6 from there to here; the addresses are made for it."""
    for name, address in ((netns.here, IPV6_HERE), (netns.there, IPV6_THERE)):
        ip("-n", name, "address", "replace", f"{address}/64", "dev", "veth0", "nodad")
    with (
        netns.inside(netns.here),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
        netns.inside(netns.there),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((IPV6_HERE, 9))
        receiver.settimeout(10)
        for _ in range(packets):
            sender.sendto(b"x" * 32, (IPV6_HERE, 9))
            receiver.recv(64)


def until(what: Callable[..., bool], *arguments: object) -> None:
    """Waits for something that has to become true."""
    deadline = time.monotonic() + 10
    while not what(*arguments):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)
