"""Counts that are made by looking at every slot or element, against what was put in."""

import ctypes
import os
import random
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.counting import MapCounter, bloom_entries
from tests.conftest import BuildObject
from tests.kernel.counted import count, create, create_outer, storage, u32
from tests.machine import Netns, ip, run_program

AF_XDP, SOL_XDP, XDP_RX_RING = 44, 283, 2
SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}[os.uname().machine]
SLOTS = 40
"""Two reads of 16 slots and half of one."""
MADE = (0, 15, 16, 31, 39)
"""Slots at the ends of those reads."""

Values = Callable[[ExitStack, int], list[int]]
"""So many descriptors, or other numbers, that the map takes as values."""


def udp_socket(stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


def connected_sockets(stack: ExitStack, wanted: int) -> list[int]:
    listener = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
    fds = list[int]()
    while len(fds) < wanted:
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        fds += [client.fileno(), stack.enter_context(closing(listener.accept()[0])).fileno()]
    return fds[:wanted]


def reuseport_sockets(stack: ExitStack, wanted: int) -> list[int]:
    address = ("127.0.0.1", 0)
    fds = []
    for _ in range(wanted):
        member = udp_socket(stack)
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        member.bind(address)
        address = member.getsockname()
        fds.append(member.fileno())
    return fds


def xdp_sockets(stack: ExitStack, wanted: int) -> list[int]:
    fds = []
    for _ in range(wanted):
        try:
            made = stack.enter_context(socket.socket(AF_XDP, socket.SOCK_RAW, 0))
        except OSError as error:
            pytest.skip(f"this kernel makes no AF_XDP sockets: {error}")
        made.setsockopt(SOL_XDP, XDP_RX_RING, u32(64))
        fds.append(made.fileno())
    return fds


def software_events(stack: ExitStack, wanted: int) -> list[int]:
    """CPU clocks of this process, that never start."""
    attributes = struct.pack("=IIQ", 1, 112, 0) + bytes(96)
    fds = []
    for _ in range(wanted):
        fd = ctypes.CDLL(None).syscall(SYS_PERF_EVENT_OPEN, attributes, 0, -1, -1, 8)
        assert fd >= 0, "perf_event_open"
        stack.callback(os.close, fd)
        fds.append(fd)
    return fds


def loopback(stack: ExitStack, wanted: int) -> list[int]:
    return [socket.if_nametoindex("lo")] * wanted


def come_and_go(counter: MapCounter, fd: int, places: tuple[int, ...], values: list[int]) -> None:
    """Fills the places one by one, writes one again, and empties them."""
    assert count(counter, fd) == 0
    for filled, (place, value) in enumerate(zip(places, values, strict=True), 1):
        kernel.map_update(fd, u32(place), u32(value))
        assert count(counter, fd) == filled
    for left, place in reversed(list(enumerate(places))):
        kernel.map_delete(fd, u32(place))
        assert count(counter, fd) == left


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("perf_event_array", software_events),
        ("sockmap", connected_sockets),
        ("xskmap", xdp_sockets),
        ("reuseport_sockarray", reuseport_sockets),
        ("devmap", loopback),
        ("devmap_hash", loopback),
    ],
)
def test_slots_come_and_go(
    counter: MapCounter, stack: ExitStack, name: str, values: Values
) -> None:
    come_and_go(counter, create(stack, name, 4, 4, SLOTS), MADE, values(stack, len(MADE)))


def test_cpus(counter: MapCounter, stack: ExitStack) -> None:
    """Each CPU has a slot of its own, and each entry a thread."""
    places = tuple(range(kernel.possible_cpus()))
    fd = create(stack, "cpumap", 4, 4, len(places))
    come_and_go(counter, fd, places, [64] * len(places))


def test_programs(counter: MapCounter, stack: ExitStack, build_object: BuildObject) -> None:
    opened = stack.enter_context(kernel.open_object(build_object("counter").read_bytes(), "x"))
    opened.load()
    fd = create(stack, "prog_array", 4, 4, SLOTS)
    come_and_go(counter, fd, MADE, [opened.program_fd("count")] * len(MADE))


def test_inner_maps(counter: MapCounter, stack: ExitStack) -> None:
    inner = create(stack, "hash", 4, 4, 10)
    fd = create_outer(stack, "array_of_maps", SLOTS, inner)
    come_and_go(counter, fd, MADE, [inner] * len(MADE))


def test_cgroups(counter: MapCounter, stack: ExitStack, cgroup: Path) -> None:
    directory = os.open(cgroup, os.O_RDONLY)
    stack.callback(os.close, directory)
    fd = create(stack, "cgroup_array", 4, 4, SLOTS)
    come_and_go(counter, fd, MADE, [directory] * len(MADE))


@pytest.mark.parametrize("name", ["devmap", "devmap_hash"])
def test_a_device_that_goes_leaves_the_map(
    counter: MapCounter, stack: ExitStack, netns: Netns, name: str
) -> None:
    with netns.inside(netns.here):
        fd = create(stack, name, 4, 4, SLOTS)
        for place, interface in enumerate(("lo", "veth0")):
            kernel.map_update(fd, u32(place), u32(socket.if_nametoindex(interface)))
    assert count(counter, fd) == 2
    ip("-n", netns.here, "link", "delete", "veth0")
    assert count(counter, fd) == 1


def test_a_socket_that_closes_leaves_the_map(counter: MapCounter, stack: ExitStack) -> None:
    fd = create(stack, "reuseport_sockarray", 4, 4, SLOTS)
    with ExitStack() as sockets:
        for place, value in enumerate(reuseport_sockets(sockets, 3)):
            kernel.map_update(fd, u32(place), u32(value))
        assert count(counter, fd) == 3
    assert count(counter, fd) == 0


@pytest.mark.parametrize(("slots", "counted"), [(1, 1), (1 << 20, 1), ((1 << 20) + 1, None)])
def test_a_scan_has_an_end(
    counter: MapCounter, stack: ExitStack, slots: int, counted: int | None
) -> None:
    inner = create(stack, "array", 4, 4, 1)
    fd = create_outer(stack, "array_of_maps", slots, inner)
    kernel.map_update(fd, u32(slots - 1), u32(inner))
    assert count(counter, fd) == counted


def test_stacks(counter: MapCounter, stack: ExitStack, build_object: BuildObject) -> None:
    opened = stack.enter_context(kernel.open_object(build_object("stack").read_bytes(), "x"))
    opened.load()
    fd = opened.map_fd("stacks")
    assert count(counter, fd) == 0
    key = run_program(opened.program_fd("note"))
    assert count(counter, fd) == 1
    kernel.map_delete(fd, u32(key))
    assert count(counter, fd) == 0


# ---- bloom filters ----


@pytest.mark.parametrize("entries", [0, 1, 100, 10_000, 20_000])
def test_a_bloom_filter(counter: MapCounter, stack: ExitStack, entries: int) -> None:
    """Within 3 %; twice what it was made for, too."""
    fd = create(stack, "bloom_filter", 0, 8, 10_000)
    chance = random.Random(7)
    for _ in range(entries):
        kernel.map_update(fd, None, chance.randbytes(8))
    estimate = count(counter, fd)
    assert estimate is not None and abs(estimate - entries) <= entries * 0.03
    if entries:
        kernel.map_update(fd, None, random.Random(7).randbytes(8))  # the first one again
    assert count(counter, fd) == estimate


def test_a_bloom_filter_that_says_yes_to_all(counter: MapCounter, stack: ExitStack) -> None:
    fd = create(stack, "bloom_filter", 0, 4, 1)
    for number in range(1000):
        kernel.map_update(fd, None, u32(number))
    assert count(counter, fd) == bloom_entries(64, 64, 5) == bloom_entries(63, 64, 5) == 53


def test_a_bloom_filter_too_large_to_scan(counter: MapCounter, stack: ExitStack) -> None:
    """16 MiB of bits."""
    fd = create(stack, "bloom_filter", 0, 4, 16_000_000)
    assert count(counter, fd) is None


# ---- local storages ----


def sockets_of_own(stack: ExitStack, wanted: int) -> list[int]:
    return [udp_socket(stack).fileno() for _ in range(wanted)]


def files_of_own(stack: ExitStack, wanted: int) -> list[int]:
    fds = [os.memfd_create("counted") for _ in range(wanted)]
    for fd in fds:
        stack.callback(os.close, fd)
    return fds


def processes_of_own(stack: ExitStack, wanted: int) -> list[int]:
    """Processes that wait to be ended."""
    fds = []
    for _ in range(wanted):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        stack.callback(os.waitpid, pid, 0)
        stack.callback(os.close, write)
        fds.append(os.pidfd_open(pid))
        stack.callback(os.close, fds[-1])
    return fds


def cgroups_of_own(stack: ExitStack, wanted: int) -> list[int]:
    mount = kernel.cgroup2_mount()
    assert mount
    fds = []
    for number in range(wanted):
        path = Path(mount) / f"bpfkeeperd-test-{os.getpid()}-{number}"
        path.mkdir()
        stack.callback(path.rmdir)
        fds.append(os.open(path, os.O_RDONLY))
        stack.callback(os.close, fds[-1])
    return fds


@pytest.mark.parametrize(
    ("name", "owners"),
    [
        ("sk_storage", sockets_of_own),
        ("inode_storage", files_of_own),
        ("task_storage", processes_of_own),
        ("cgrp_storage", cgroups_of_own),
    ],
)
def test_storages(
    counter: MapCounter, stack: ExitStack, build_object: BuildObject, name: str, owners: Values
) -> None:
    fd = storage(stack, build_object, name)
    assert count(counter, fd) == 0
    fds = owners(stack, 12)
    for owner in fds:
        kernel.map_update(fd, u32(owner), bytes(8))
    kernel.map_update(fd, u32(fds[0]), bytes(8))  # one that has it already
    assert count(counter, fd) == 12
    for owner in fds[:5]:
        kernel.map_delete(fd, u32(owner))
    assert count(counter, fd) == 7
