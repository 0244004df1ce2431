"""Ways to put something into a kept map, and to see all of it again, from outside the keeper."""

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.maptypes import BY_NUMBER
from tests.machine import run_program

AF_XDP, SOL_XDP, XDP_RX_RING = 44, 283, 2
SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}[os.uname().machine]
BPF_CGROUP_INET_EGRESS = 1
MAP_FIXED_NOREPLACE = 0x100000
PAGE = kernel.page_size()
PROG_TYPE_XDP = 6
PACKET = bytes(64)
OWN_VERSION = 9
"""Of the object from which the outsider's own programs are."""


@dataclass(slots=True)
class Outsider:
    """Somebody beside the keeper who uses one kept map, and what of theirs it holds."""

    stack: ExitStack
    """Closes what the contents live on."""
    build: Callable[[int], Path]
    """An object that uses a map of this type, in any version."""
    cgroup: Path
    keys: list[bytes] = field(default_factory=list)
    """Those that cannot be asked for."""
    address: int = 0
    """Where the map's memory is, once it was mapped."""


Fill = Callable[[Outsider, int], None]
"""Puts contents into the map of a descriptor."""
Read = Callable[[Outsider, int], object]
"""All that can be seen of its contents, which stay there."""


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def u64(number: int) -> bytes:
    return struct.pack("=Q", number)


# ---- entries that can be written and read ----


def values_size(fd: int) -> int:
    info = kernel.map_info(fd)
    if BY_NUMBER[info.type].per_cpu:
        return -(-info.value_size // 8) * 8 * kernel.possible_cpus()
    return info.value_size


def put(*entries: tuple[bytes, bytes]) -> Fill:
    """Writes entries; a value is that of every CPU."""

    def fill(outsider: Outsider, fd: int) -> None:
        size = values_size(fd)
        for key, value in entries:
            kernel.map_update(fd, key, value * (size // len(value)))

    return fill


def entries(outsider: Outsider, fd: int) -> object:
    size = values_size(fd)
    keys = kernel.map_keys(fd, kernel.map_info(fd).key_size)
    return {key: kernel.map_lookup(fd, key, size) for key in keys}


TWO = put((u32(1), u64(11)), (u32(2), u64(22)))


# ---- what descriptors stand for ----


@contextmanager
def loaded(outsider: Outsider, fd: int) -> Iterator[int]:
    """A program of the outsider's own that uses the map."""
    data = outsider.build(OWN_VERSION).read_bytes()
    with kernel.open_object(data, "outsider") as opened:
        opened.reuse_map("kept", fd)
        opened.load()
        yield opened.program_fd("use")


def put_descriptors(make: Callable[[Outsider], list[int]]) -> Fill:
    """Puts what somebody has open into slots 1, 2, ..."""

    def fill(outsider: Outsider, fd: int) -> None:
        size = kernel.map_info(fd).value_size
        for slot, value in enumerate(make(outsider), 1):
            kernel.map_update(fd, u32(slot), value.to_bytes(size, "little"))

    return fill


def connection(outsider: Outsider) -> list[int]:
    stack = outsider.stack
    listener = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
    client = stack.enter_context(socket.create_connection(listener.getsockname()))
    return [client.fileno(), stack.enter_context(closing(listener.accept()[0])).fileno()]


def reuseport_socket(outsider: Outsider) -> list[int]:
    member = outsider.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    member.bind(("127.0.0.1", 0))
    return [member.fileno()]


def xdp_socket(outsider: Outsider) -> list[int]:
    try:
        made = outsider.stack.enter_context(socket.socket(AF_XDP, socket.SOCK_RAW, 0))
    except OSError as error:
        pytest.skip(f"this kernel makes no AF_XDP sockets: {error}")
    made.setsockopt(SOL_XDP, XDP_RX_RING, u32(64))
    return [made.fileno()]


def put_counter(outsider: Outsider, fd: int) -> None:
    """A CPU clock of this process, by a descriptor of the map that is closed then."""
    attributes = struct.pack("=IIQ", 1, 112, 0) + bytes(96)
    event = ctypes.CDLL(None).syscall(SYS_PERF_EVENT_OPEN, attributes, 0, -1, -1, 8)
    assert event >= 0, "perf_event_open"
    outsider.stack.callback(os.close, event)
    kernel.map_update(fd, u32(0), u32(event))


def put_programs(outsider: Outsider, fd: int) -> None:
    with loaded(outsider, fd) as program:
        kernel.map_update(fd, u32(1), u32(program))


def put_cgroups(outsider: Outsider, fd: int) -> None:
    """One that this process is not in, and one that it is in."""
    for slot, path in enumerate((outsider.cgroup, outsider.cgroup.parent)):
        with kernel.holding(os.open(path, os.O_RDONLY)) as directory:
            kernel.map_update(fd, u32(slot), u32(directory))


def put_maps(outsider: Outsider, fd: int) -> None:
    """Inner maps that live in their slots only."""
    for number in (1, 2):
        with kernel.holding(kernel.map_create(1, "kept", 4, 8, 4)) as inner:
            kernel.map_update(inner, u32(number), u64(number))
            kernel.map_update(fd, u32(number), u32(inner))


def inner_maps(outsider: Outsider, fd: int) -> object:
    found = []
    for key in kernel.map_keys(fd, 4):
        slot = kernel.map_lookup(fd, key, 4)
        inner = kernel.map_by_id(int.from_bytes(slot, "little")) if slot else None
        if inner is not None:
            with kernel.holding(inner):
                found.append((key, slot, entries(outsider, inner)))
    return sorted(found)


def says_program(outsider: Outsider, fd: int) -> object:
    """What a program finds in a map that user space cannot read."""
    with loaded(outsider, fd) as program:
        on_packets = kernel.program_info(program).type == PROG_TYPE_XDP
        return run_program(program, PACKET if on_packets else b"")


# ---- what only programs write ----


def by_program(outsider: Outsider, fd: int) -> None:
    with loaded(outsider, fd) as program:
        for _ in range(2):
            run_program(program)


def by_attachment(outsider: Outsider, fd: int) -> None:
    """The kernel makes the entry when the program is attached; it goes with the attachment."""
    with (
        loaded(outsider, fd) as program,
        kernel.holding(os.open(outsider.cgroup, os.O_RDONLY)) as target,
    ):
        link = kernel.link_create(program, target, BPF_CGROUP_INET_EGRESS)
        outsider.stack.callback(os.close, link)
    (key,) = kernel.map_keys(fd, kernel.map_info(fd).key_size)
    put((key, u64(77)))(outsider, fd)


# ---- storages ----


def put_storage(make: Callable[[Outsider], int]) -> Fill:
    def fill(outsider: Outsider, fd: int) -> None:
        kernel.map_update(fd, u32(owner := make(outsider)), u64(33))
        outsider.keys.append(u32(owner))

    return fill


def storages(outsider: Outsider, fd: int) -> object:
    return [kernel.map_lookup(fd, key, 8) for key in outsider.keys]


def own_descriptor(outsider: Outsider, fd: int) -> int:
    outsider.stack.callback(os.close, fd)
    return fd


def of_a_socket(outsider: Outsider) -> int:
    return outsider.stack.enter_context(socket.socket()).fileno()


def of_a_file(outsider: Outsider) -> int:
    return own_descriptor(outsider, os.memfd_create("owner"))


def of_this_process(outsider: Outsider) -> int:
    return own_descriptor(outsider, os.pidfd_open(os.getpid()))


def of_a_cgroup(outsider: Outsider) -> int:
    return own_descriptor(outsider, os.open(outsider.cgroup, os.O_RDONLY))


# ---- without keys ----


def push(outsider: Outsider, fd: int) -> None:
    for value in (5, 6, 7):
        kernel.map_update(fd, None, u32(value))


def taken_and_put_back(outsider: Outsider, fd: int) -> object:
    """Every value in turn; a stack gets them back from the last to the first."""
    values = []
    while (value := kernel.map_pop(fd, None, 4)) is not None:
        values.append(value)
    is_stack = BY_NUMBER[kernel.map_info(fd).type].name == "stack"
    for value in reversed(values) if is_stack else values:
        kernel.map_update(fd, None, value)
    return values


def maybe_contained(outsider: Outsider, fd: int) -> object:
    return [value for value in range(1000) if kernel.map_contains(fd, u32(value))]


@contextmanager
def mapped(
    fd: int, size: int, offset: int = 0, address: int = 0, *, write: bool = False
) -> Iterator[int]:
    """Memory of a map, at an address if one is given; yields the address."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
    flags = mmap.MAP_SHARED | (MAP_FIXED_NOREPLACE if address else 0)
    found = libc.mmap(address or None, size, protection, flags, fd, offset)
    if found in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"mmap: {os.strerror(ctypes.get_errno())}")
    try:
        yield found
    finally:
        libc.munmap(found, size)


def submit_record(outsider: Outsider, fd: int) -> None:
    """One record of 16 bytes: the producer's page is the second one, data follow."""
    with mapped(fd, 2 * PAGE, PAGE, write=True) as producer:
        ctypes.memmove(producer + PAGE, struct.pack("=IIQQ", 16, 0, 44, 55), 24)
        ctypes.memmove(producer, u64(24), 8)


def records(outsider: Outsider, fd: int) -> object:
    """The positions of consumer and producer, and the data."""
    with mapped(fd, 3 * PAGE) as pages:
        return [ctypes.string_at(pages + number * PAGE, 64) for number in range(3)]


def write_memory(outsider: Outsider, fd: int) -> None:
    """Into the second page. An arena stays at the address where it was mapped first."""
    fixed = kernel.map_info(fd).map_extra
    with mapped(fd, 2 * PAGE, address=fixed, write=True) as outsider.address:
        ctypes.memmove(outsider.address + PAGE, b"in the arena", 12)


def memory(outsider: Outsider, fd: int) -> object:
    if not outsider.address:
        return b""  # nobody has mapped it yet
    with mapped(fd, 2 * PAGE, address=outsider.address, write=True) as address:
        return ctypes.string_at(address, 2 * PAGE)
