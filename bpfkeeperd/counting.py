"""How full every map of the machine is, in one read of a BPF iterator.

The program behind it is bpf/map_counts.bpf.c; it looks at no entries, so that a map with ten
million of them costs no more than an empty one.
"""

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from bpfkeeperd import kernel
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.maptypes import BY_NUMBER, HASH, HASH_OF_MAPS, LRU_HASH, LRU_PERCPU_HASH, Count

OBJECT_FILE = Path(__file__).parent / "bpf" / "map_counts.bpf.o"

_WITH_KFUNC = "count_maps"
_WITHOUT_KFUNC = "count_maps_without_kfunc"
_PROGRAMS = (_WITH_KFUNC, _WITHOUT_KFUNC)
_PERCPU_HASH = 5
_KFUNC_TYPES = frozenset({HASH, _PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH, HASH_OF_MAPS})
"""Those that only bpf_map_sum_elem_count() can count, see the program."""

_RECORD = struct.Struct("=IIq")
"""``struct record`` of the program: ID, type, count or -1."""
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
            "cannot count map entries: this kernel takes neither program"
            f" ({'; '.join(reasons)}): Linux 5.8 or newer with BTF, CAP_BPF and CAP_PERFMON are"
            " needed"
        )

    def counts(self) -> dict[int, int]:
        """Map ID to entries in use (bytes for ring buffers), of the maps that could be counted.

        Maps that come and go meanwhile may or may not be among them.

        Raises:
            KernelError: the iterator cannot be made or read.
        """
        with kernel.holding(kernel.iter_create(self._link_fd)) as iterator_fd:
            records = _read_all(iterator_fd)
        return {map_id: count for map_id, _, count in _RECORD.iter_unpack(records) if count >= 0}

    def counted_by(self, map_type: int) -> str:
        """How maps of a type are counted: ``kfunc``, ``field``, or nothing when they are not."""
        known = BY_NUMBER.get(map_type)
        if known is None or known.count is Count.NONE:
            return ""
        if map_type not in _KFUNC_TYPES:
            return "field"
        return "kfunc" if self._program == _WITH_KFUNC else ""

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


def _attach(data: bytes, program: str) -> int:
    """Loads one of the programs; returns the link that keeps it."""
    with kernel.open_object(data, "map_counts") as opened:
        for name in _PROGRAMS:
            opened.set_autoload(name, name == program)
        opened.load()
        return kernel.link_create(opened.program_fd(program), 0, kernel.TRACE_ITER)


def _read_all(iterator_fd: int) -> bytes:
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
