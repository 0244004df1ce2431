"""How full every map of the machine is, in one read of a BPF iterator.

The program behind it is bpf/map_counts.bpf.c. Most counts are a field of the map, so that a hash
with ten million entries costs no more than an empty one. Arrays of pointers, bloom filters and
local storages are scanned, 1 to 2 ns a slot and up to 40 ns an element; those with more than a
million slots (a bloom filter: more than 8 MiB of bits) are not counted, for a scrape must not wait
for them.
"""

import math
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from bpfkeeperd import kernel
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.maptypes import (
    BY_NUMBER,
    DEVMAP_HASH,
    HASH,
    HASH_OF_MAPS,
    LPM_TRIE,
    LRU_HASH,
    LRU_PERCPU_HASH,
    PERCPU_HASH,
    QUEUE,
    RINGBUF,
    SOCKHASH,
    STACK,
    USER_RINGBUF,
    Count,
)

OBJECT_FILE = Path(__file__).parent / "bpf" / "map_counts.bpf.o"

_WITH_KFUNC = "count_maps"
_WITHOUT_KFUNC = "count_maps_without_kfunc"
_BY_FIELD = "count_maps_by_field"
_PROGRAMS = (_WITH_KFUNC, _WITHOUT_KFUNC, _BY_FIELD)
_KFUNC_TYPES = frozenset({HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH, HASH_OF_MAPS})
"""Those that only bpf_map_sum_elem_count() can count, see the program."""
_FIELD_TYPES = frozenset({LPM_TRIE, SOCKHASH, DEVMAP_HASH, QUEUE, STACK, RINGBUF, USER_RINGBUF})
"""Those that have their count in a field; any other type is scanned."""

_RECORD = struct.Struct("=IIqII")
"""``struct record`` of the program: ID, type, count or -1, a bloom filter's bit mask and hashes."""
_READ_BYTES = 1 << 16
"""The kernel hands out at most 32 KiB (eight pages) a read."""


class MapCounter:
    """Counts the entries of all maps; a context manager that holds one descriptor.

    The counts may be asked for from several threads at once.
    """

    __slots__ = ("_link_fd", "_program")

    def __init__(self, link_fd: int, program: str) -> None:
        self._link_fd = link_fd
        self._program = program

    @classmethod
    def open(cls) -> Self:
        """Loads the best program that this kernel takes.

        Raises:
            KeeperError: the kernel takes none, with its reason for each, or the file is not there.
        """
        try:
            data = OBJECT_FILE.read_bytes()
        except OSError as error:
            raise KeeperError(
                f"cannot count map entries: {OBJECT_FILE}: {error.strerror}:"
                " install bpfkeeperd again, its files are not complete"
            ) from error
        reasons = []
        for program in _PROGRAMS:
            try:
                return cls(_attach(data, program), program)
            except KeeperError as error:
                reasons.append(f"{program}: {error}")
        raise KeeperError(
            "cannot count map entries: this kernel takes none of the programs"
            f" ({'; '.join(reasons)}): Linux 5.8 or newer with BTF, CAP_BPF and CAP_PERFMON are"
            " needed"
        )

    def counts(self) -> dict[int, int]:
        """Map ID to entries in use (bytes for ring buffers), of the maps that could be counted.

        Maps that come and go meanwhile may or may not be among them. A bloom filter's is an
        estimate, and may be above its max_entries: the kernel lets one put in more.

        Raises:
            KernelError: the iterator cannot be made or read.
        """
        with kernel.holding(kernel.iter_create(self._link_fd)) as iterator_fd:
            records = read_all(iterator_fd)
        return {
            map_id: bloom_entries(count, mask + 1, hashes) if hashes else count
            for map_id, _, count, mask, hashes in _RECORD.iter_unpack(records)
            if count >= 0
        }

    def counted_by(self, map_type: int) -> str:
        """How maps of a type are counted: ``kfunc``, ``field``, ``scan`` or ``estimate``.

        Empty when they are not, on this kernel or on any. Single maps that are too large to be
        scanned are not counted either.
        """
        known = BY_NUMBER.get(map_type)
        if known is None or known.count is Count.NONE:
            return ""
        if map_type in _FIELD_TYPES:
            return "field"
        if map_type in _KFUNC_TYPES:
            return "kfunc" if self._program == _WITH_KFUNC else ""
        if self._program == _BY_FIELD:
            return ""
        return "estimate" if known.count is Count.ESTIMATE else "scan"

    def close(self) -> None:
        """Lets go of the program; a second call does nothing."""
        fd, self._link_fd = self._link_fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def bloom_entries(set_bits: int, bits: int, hashes: int) -> int:
    """How many different entries a bloom filter was most likely given (within some 2 %).

    Of a filter whose bits are all set nothing can be told but that it holds very many: the answer
    is that for one bit less.
    """
    share = min(set_bits, bits - 1) / bits
    return round(-bits / hashes * math.log1p(-share))


def _attach(data: bytes, program: str) -> int:
    """Loads one of the programs; returns the link that keeps it."""
    with kernel.open_object(data, "map_counts") as opened:
        for name in _PROGRAMS:
            opened.set_autoload(name, name == program)
        opened.load()
        return kernel.link_create(opened.program_fd(program), 0, kernel.TRACE_ITER)


def read_all(iterator_fd: int) -> bytes:
    """What the iterator writes until its end; a record may be split between two reads."""
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(iterator_fd, _READ_BYTES)
        except BlockingIOError:
            continue  # a pause after a million objects (MAX_ITER_OBJECTS): the next read goes on
        except OSError as error:
            raise KernelError("read the map iterator", error.errno or 0) from error
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
