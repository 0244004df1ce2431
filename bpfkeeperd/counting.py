"""How full every map of the machine is, in one read of a BPF iterator.

The programs behind it are bpf/map_counts.bpf.c and, for kernels that are locked down,
bpf/map_counts_lockdown.bpf.c. Most counts are a field of the map, so that a hash
with ten million entries costs no more than an empty one. Arrays of pointers, bloom filters and
local storages are scanned, 1 to 2 ns a slot and up to 40 ns an element; those with more than a
million slots (a bloom filter: more than 8 MiB of bits) are not counted, for a scrape must not wait
for them.
"""

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from bpfkeeperd import iterators
from bpfkeeperd.errors import KeeperError
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


@dataclass(frozen=True, slots=True)
class Program:
    """One of those that count; they differ in what they ask of the kernel."""

    object_name: str
    name: str
    kfunc: bool
    """It counts what only bpf_map_sum_elem_count() can count."""
    scans: bool
    """It counts what has to be scanned."""


PROGRAMS = (
    Program("map_counts", "count_maps", kfunc=True, scans=True),
    Program("map_counts_plain", "count_maps_without_kfunc", kfunc=False, scans=True),
    Program("map_counts_plain", "count_maps_by_field", kfunc=False, scans=False),
    Program("map_counts_lockdown", "count_maps_in_lockdown", kfunc=True, scans=True),
    Program("map_counts_lockdown", "count_maps_in_lockdown_without_kfunc", kfunc=False, scans=True),
)
"""In the order in which they are tried. A kernel that is locked down takes none of the first three;
Linux before 5.13 takes the third, and it finds out only how many maps
there are."""

_KFUNC_TYPES = frozenset({HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH, HASH_OF_MAPS})
"""Those that only bpf_map_sum_elem_count() can count, see the program."""
_FIELD_TYPES = frozenset({LPM_TRIE, SOCKHASH, DEVMAP_HASH, QUEUE, STACK, RINGBUF, USER_RINGBUF})
"""Those that have their count in a field; any other type is scanned."""

_RECORD = struct.Struct("=IIqII")
"""``struct record`` of the programs: ID, type, count or less than 0 for a map that is not counted,
a bloom filter's bit mask and hashes."""


class Survey(NamedTuple):
    """All maps of the machine at one moment."""

    counts: Mapping[int, int]
    """As `MapCounter.counts` gives them."""
    maps: int
    """How many there are, those included that are not counted."""
    highest_id: int
    """Of those that are there; 0 without any."""


class MapCounter:
    """Counts the entries of all maps; a context manager that holds one descriptor.

    The counts may be asked for from several threads at once.
    """

    __slots__ = ("_link_fd", "program")

    def __init__(self, link_fd: int, program: Program) -> None:
        self._link_fd = link_fd
        self.program = program

    @classmethod
    def open(cls, programs: Sequence[Program] = PROGRAMS) -> Self:
        """Loads the first of the programs that this kernel takes.

        Raises:
            KeeperError: the kernel takes none, with the reason for each.
        """
        reasons = []
        for program in programs:
            file = iterators.OBJECTS / f"{program.object_name}.bpf.o"
            try:
                return cls(iterators.load(file, program.name), program)
            except KeeperError as error:
                reasons.append(f"{program.name}: {error}")
        raise KeeperError(
            "cannot count map entries: this kernel takes none of the programs"
            f" ({'; '.join(reasons)}): Linux 5.8 or newer with BTF, CAP_BPF and CAP_PERFMON are"
            " needed, and 6.2 where the kernel is locked down"
        )

    def counts(self) -> dict[int, int]:
        """Map ID to entries in use (bytes for ring buffers), of the maps that could be counted.

        Maps that come and go meanwhile may or may not be among them. A bloom filter's is an
        estimate, and may be above its max_entries: the kernel lets one put in more.

        Raises:
            KernelError: the iterator cannot be made or read.
        """
        return _counts(iterators.read(self._link_fd))

    def survey(self) -> Survey:
        """The counts and what else one reading tells.

        Raises:
            KernelError: the iterator cannot be made or read.
        """
        records = iterators.read(self._link_fd)
        # They come by ascending ID.
        highest_id = _RECORD.unpack_from(records, len(records) - _RECORD.size)[0] if records else 0
        return Survey(_counts(records), len(records) // _RECORD.size, highest_id)

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
            return "kfunc" if self.program.kfunc else ""
        if not self.program.scans:
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


def _counts(records: bytes) -> dict[int, int]:
    return {
        map_id: bloom_entries(count, mask + 1, hashes) if hashes else count
        for map_id, _, count, mask, hashes in _RECORD.iter_unpack(records)
        if count >= 0
    }
