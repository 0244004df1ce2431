"""Bandwidth of cgroups: what each may still send is in cgroup storage, and stays over a reload."""

import os
import socket
import struct
from pathlib import Path

from bpfkeeperd import kernel
from tests.examples.conftest import Example, MakeExample
from tests.machine import inside_cgroup

EGRESS = 1
SIZE = 20 + 8 + 1000
"""IPv4 and UDP headers, and what is sent."""

NAMES = ("backup", "user")
BURST = 10
"""Packets."""


def start(example: MakeExample) -> Example:
    """Two cgroups that may send ten packets at once, and then one byte in a second."""
    bandwidth = example("bandwidth")
    for place, name in zip(("system.slice/backup.service", "user.slice"), NAMES, strict=True):
        (bandwidth.world.cgroup / name).mkdir()
        bandwidth.edit(f"cgroup: {place}", f"cgroup: {bandwidth.world.cgroup}/{name}")
    bandwidth.edit("rate: 12500000, burst: 262144", f"rate: 1, burst: {BURST * SIZE}")
    return bandwidth


def storage_key(cgroup: Path) -> bytes:
    """struct bpf_cgroup_storage_key: a cgroup's ID is the inode of its directory."""
    return struct.pack("=QI4x", cgroup.stat().st_ino, EGRESS)


def queue(example: Example, name: str) -> tuple[int, int]:
    """A cgroup's credit, and the version of the program that was there last."""
    value = example.contents("queues")[storage_key(example.world.cgroup / name)]
    _, version, _, credit = struct.unpack("=IIQQ", value)
    return credit, version


def sent(example: Example, name: str) -> tuple[int, ...]:
    """Packets, bytes and dropped packets of a cgroup, on all CPUs."""
    value = example.contents("sent")[storage_key(example.world.cgroup / name)]
    cpus = list(struct.iter_unpack("=QQQ", value))
    assert len(cpus) == kernel.possible_cpus()
    return tuple(sum(column) for column in zip(*cpus, strict=True))


def send(example: Example, name: str, packets: int) -> int:
    """Sends from a cgroup over loopback, on every CPU; how many arrived."""
    home = os.sched_getaffinity(0)
    with (
        inside_cgroup(example.world.cgroup / name),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        arrived = 0
        try:
            for number in range(packets):
                os.sched_setaffinity(0, {sorted(home)[number % len(home)]})
                try:
                    sender.sendto(b"x" * 1000, receiver.getsockname())
                    arrived += len(receiver.recv(1000)) == 1000
                except (PermissionError, BlockingIOError):  # how a sender learns of a drop
                    continue
        finally:
            os.sched_setaffinity(0, home)
    return arrived


def test_credit_of_each_cgroup_stays_over_a_reload(example: MakeExample) -> None:
    bandwidth = start(example)
    with bandwidth.keeper() as keeper:
        ids = bandwidth.map_ids()
        assert ids.keys() == {"limits", "queues", "sent"}
        assert send(bandwidth, "backup", 6) == 6
        credit, version = queue(bandwidth, "backup")
        assert (credit // SIZE, version) == (BURST - 6, 1)
        assert sent(bandwidth, "backup") == (6, 6 * SIZE, 0)
        assert sent(bandwidth, "user") == (0, 0, 0)
        before = {name: bandwidth.contents(name) for name in ids}

        bandwidth.put("bandwidth", VERSION=2)
        bandwidth.reload(keeper)
        assert bandwidth.map_ids() == ids
        assert {name: bandwidth.contents(name) for name in ids} == before
        assert send(bandwidth, "backup", 6) == 4, "the credit was not given out again"
        assert queue(bandwidth, "backup")[1] == 2
        assert sent(bandwidth, "backup") == (BURST, BURST * SIZE, 2)
        assert send(bandwidth, "user", 3) == 3, "each cgroup has its own"
        assert sent(bandwidth, "user") == (3, 3 * SIZE, 0)


def test_a_limit_is_changed_in_the_manifest(example: MakeExample) -> None:
    bandwidth = start(example)
    with bandwidth.keeper() as keeper:
        ids = bandwidth.map_ids()
        assert send(bandwidth, "user", BURST + 5) == BURST
        bandwidth.edit("rate: 1, ", "rate: 0, ")
        bandwidth.reload(keeper)
        assert bandwidth.map_ids() == ids
        assert send(bandwidth, "user", 5) == 5
        assert sent(bandwidth, "user") == (BURST + 5, (BURST + 5) * SIZE, 5)
