"""AF_XDP sockets, as a program that receives with them opens them; see <linux/if_xdp.h>."""

import ctypes
import mmap
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

AF_XDP, SOL_XDP = 44, 283
XDP_MMAP_OFFSETS, XDP_RX_RING, XDP_UMEM_REG = 1, 2, 4
XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 5, 6
XDP_SHARED_UMEM, XDP_COPY = 1, 2

FRAMES, FRAME_SIZE = 64, 2048
RING_SIZE = 64


class _Address(ctypes.Structure):
    """struct sockaddr_xdp: Python's socket module knows no such address."""

    _fields_ = (
        ("family", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("interface", ctypes.c_uint32),
        ("queue", ctypes.c_uint32),
        ("shared_umem_fd", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring that is shared with the kernel; one side moves the producer, one the consumer."""

    memory: mmap.mmap
    producer: int
    consumer: int
    entries: int

    def get(self, offset: int) -> int:
        return int.from_bytes(self.memory[offset : offset + 4], "little")

    def put(self, offset: int, value: int) -> None:
        self.memory[offset : offset + 4] = (value % (1 << 32)).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class XdpSocket:
    """A socket that receives from one queue."""

    sock: socket.socket
    frames: mmap.mmap
    """Shared by all sockets of the queue, as the fill ring is: where frames are received into."""
    received: Ring
    fill: Ring

    def fileno(self) -> int:
        return self.sock.fileno()

    def receive(self, count: int) -> list[bytes]:
        """The next frames, when they have come."""
        found: list[bytes] = []
        while len(found) < count:
            ready, _, _ = select.select([self.sock], [], [], 5)
            assert ready, f"{count} frames are wanted, {found} have come"
            consumer = self.received.get(self.received.consumer)
            entry = self.received.entries + consumer % RING_SIZE * 16
            address, length = struct.unpack_from("=QI", self.received.memory, entry)
            found.append(self.frames[address : address + length])
            give(self.fill, address - address % FRAME_SIZE)
            self.received.put(self.received.consumer, consumer + 1)
        return found

    def is_empty(self) -> bool:
        return not select.select([self.sock], [], [], 0)[0]


def give(fill: Ring, address: int) -> None:
    """Gives the kernel a frame to receive into."""
    producer = fill.get(fill.producer)
    entry = fill.entries + producer % RING_SIZE * 8
    fill.memory[entry : entry + 8] = address.to_bytes(8, "little")
    fill.put(fill.producer, producer + 1)


@contextmanager
def xdp_sockets(interface: int, count: int) -> Iterator[list[XdpSocket]]:
    """Sockets of queue 0 of an interface of this namespace, by its index."""
    with ExitStack() as stack:
        frames = stack.enter_context(mmap.mmap(-1, FRAMES * FRAME_SIZE))
        made: list[XdpSocket] = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(AF_XDP, socket.SOCK_RAW))
            sock.setsockopt(SOL_XDP, XDP_RX_RING, RING_SIZE)
            if made:
                fill = made[0].fill
                _bind(sock, _Address(AF_XDP, XDP_SHARED_UMEM, interface, 0, made[0].fileno()))
            else:
                start = ctypes.addressof(ctypes.c_char.from_buffer(frames))
                umem = struct.pack("=QQIII4x", start, len(frames), FRAME_SIZE, 0, 0)
                sock.setsockopt(SOL_XDP, XDP_UMEM_REG, umem)
                sock.setsockopt(SOL_XDP, XDP_UMEM_FILL_RING, RING_SIZE)
                sock.setsockopt(SOL_XDP, XDP_UMEM_COMPLETION_RING, RING_SIZE)
                fill = _map(stack, sock, pages=0x100000000, ring=2, entry_size=8)
                _bind(sock, _Address(AF_XDP, XDP_COPY, interface, 0, 0))
                for frame in range(FRAMES):
                    give(fill, frame * FRAME_SIZE)
            received = _map(stack, sock, pages=0, ring=0, entry_size=16)
            made.append(XdpSocket(sock, frames, received, fill))
        yield made


def _bind(sock: socket.socket, address: _Address) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.bind(sock.fileno(), ctypes.byref(address), ctypes.sizeof(address)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _map(stack: ExitStack, sock: socket.socket, *, pages: int, ring: int, entry_size: int) -> Ring:
    """Maps a ring; ``ring`` is its number in what XDP_MMAP_OFFSETS answers."""
    offsets = sock.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, 128)
    producer, consumer, entries, _ = struct.unpack_from("=QQQQ", offsets, ring * 32)
    memory = mmap.mmap(sock.fileno(), entries + RING_SIZE * entry_size, offset=pages)
    return Ring(stack.enter_context(memory), producer, consumer, entries)
