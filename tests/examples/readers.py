"""Readers of event streams, as users have them: of a ring buffer, and of perf buffers."""

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from bpfkeeperd import kernel
from tests.examples.attaching import output_event

_BUSY, _DISCARD = 1 << 31, 1 << 30
_LENGTH = _DISCARD - 1
_PERF_RECORD_LOST, _PERF_RECORD_SAMPLE = 2, 9
_DATA_HEAD, _DATA_TAIL = 1024, 1032  # places in struct perf_event_mmap_page
_PERF_PAGES = 64


class Ring:
    """The consumer of a RINGBUF map: holds it, and reads what is written to it.

    Its pages: the consumer's position, which is ours to write, the producer's position, then the
    data, twice in a row.
    """

    def __init__(self, path: Path) -> None:
        found = kernel.pinned_map(str(path))
        assert found
        page = mmap.PAGESIZE
        with kernel.holding(found[0]) as fd:
            self._size = found[1].max_entries
            self._own = mmap.mmap(fd, page)
            self._theirs = mmap.mmap(fd, page + 2 * self._size, prot=mmap.PROT_READ, offset=page)

    def read(self) -> Iterator[bytes]:
        """All that is there."""
        (position,) = struct.unpack_from("=Q", self._own)
        while position < struct.unpack_from("=Q", self._theirs)[0]:
            start = mmap.PAGESIZE + position % self._size
            (header,) = struct.unpack_from("=I", self._theirs, start)
            if header & _BUSY:
                return
            length = header & _LENGTH
            if not header & _DISCARD:
                yield self._theirs[start + 8 : start + 8 + length]
            position += (8 + length + 7) // 8 * 8
            struct.pack_into("=Q", self._own, 0, position)

    def close(self) -> None:
        self._own.close()
        self._theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PerfBuffers:
    """The consumer of a PERF_EVENT_ARRAY map: puts a buffer for each CPU into it, and reads them.

    It holds the map: what a consumer put in goes when the descriptor that it was put in with does.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self._buffers: list[mmap.mmap] = []
        with ExitStack() as stack:
            found = kernel.pinned_map(str(path))
            assert found
            stack.callback(os.close, found[0])
            for cpu in sorted(os.sched_getaffinity(0)):
                event = output_event(cpu)
                stack.callback(os.close, event)
                buffer = mmap.mmap(event, (1 + _PERF_PAGES) * mmap.PAGESIZE)
                stack.callback(buffer.close)
                kernel.map_update(found[0], struct.pack("=I", cpu), struct.pack("=I", event))
                self._buffers.append(buffer)
            self._held = stack.pop_all()

    def read(self) -> Iterator[bytes]:
        """All that is there, CPU by CPU; what found no room is counted in ``lost``."""
        for buffer in self._buffers:
            (head,) = struct.unpack_from("=Q", buffer, _DATA_HEAD)
            (tail,) = struct.unpack_from("=Q", buffer, _DATA_TAIL)
            while tail < head:
                kind, _, size = struct.unpack("=IHH", self._take(buffer, tail, 8))
                record = self._take(buffer, tail + 8, size - 8)
                if kind == _PERF_RECORD_SAMPLE:
                    yield record[4 : 4 + struct.unpack_from("=I", record)[0]]
                elif kind == _PERF_RECORD_LOST:
                    self.lost += struct.unpack_from("=QQ", record)[1]
                tail += size
            struct.pack_into("=Q", buffer, _DATA_TAIL, tail)

    @staticmethod
    def _take(buffer: mmap.mmap, position: int, size: int) -> bytes:
        """Bytes of the data, which go on at its start when its end is reached."""
        whole = _PERF_PAGES * mmap.PAGESIZE
        start = position % whole
        first = min(size, whole - start)
        data = buffer[mmap.PAGESIZE + start : mmap.PAGESIZE + start + first]
        return data + buffer[mmap.PAGESIZE : mmap.PAGESIZE + size - first]

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
