"""How many map IDs the kernel has given out since boot, read without taking one.

IDs are given out in order and not again until all have been; then the kernel starts over and
passes over those in use. Where the kernel names its allocator (CONFIG_KALLSYMS_ALL, as Debian's
does) a BPF iterator reads it, see bpf/map_ids.bpf.c; elsewhere the highest ID ever seen is a lower
bound.
"""

import os
import struct
from contextlib import ExitStack, suppress
from threading import Lock
from types import TracebackType
from typing import NamedTuple, Self

from bpfkeeperd import iterators, kernel
from bpfkeeperd.errors import KeeperError, KernelError

LIMIT = 2**31 - 2
"""The highest map ID there is; the first is 1."""

OBJECT_NAME = "map_ids.bpf.o"

PROGRAMS = ("tell_next_id", "tell_next_id_in_lockdown")
"""In the order in which they are tried."""

_NEXT_ID = struct.Struct("=I")
_NO_LINK = -1


class Position(NamedTuple):
    """How far the allocator has come."""

    allocated: int
    """IDs given out since boot; more than `LIMIT` once it has started over."""
    exact: bool
    """The allocator itself said so; else there may be more."""

    @property
    def headroom(self) -> int:
        """IDs that are left before it starts over."""
        return LIMIT - 1 - (self.allocated - 1) % LIMIT if self.allocated else LIMIT


class Rounds:
    """Counts on through IDs that start over, as far as it is asked in each round."""

    __slots__ = ("_before", "_last_id")

    def __init__(self) -> None:
        self._before = self._last_id = 0

    def allocated(self, last_id: int, highest_id: int) -> int:
        """How many were given out, by the last one and the highest one that was seen before."""
        if last_id < self._last_id:
            self._before += LIMIT
        elif last_id < highest_id and not self._before:
            self._before = LIMIT  # it started over before this was first asked
        self._last_id = last_id
        return self._before + last_id


class MapIdAllocator:
    """Tells how far the allocator of map IDs has come; a context manager that holds one descriptor.

    It may be asked from several threads at once.
    """

    __slots__ = ("_highest_id", "_link_fd", "_lock", "_rounds")

    def __init__(self, link_fd: int = _NO_LINK) -> None:
        self._link_fd = link_fd
        self._lock = Lock()
        self._rounds = Rounds()
        self._highest_id = 0

    @classmethod
    def open(cls) -> Self:
        """Finds the allocator, which takes 0.1 s or more: libbpf reads all of the kernel's symbols.

        Where that cannot be done, whatever the reason, `position` gives a lower bound.
        """
        for program in PROGRAMS:
            with suppress(KeeperError, OSError), ExitStack() as stack:
                link_fd = iterators.load(iterators.OBJECTS / OBJECT_NAME, program)
                stack.callback(os.close, link_fd)
                if _next_id(link_fd) is not None:
                    stack.pop_all()
                    return cls(link_fd)
        return cls()

    def position(self, highest_id: int) -> Position:
        """How far the allocator is now; never less than at the call before.

        ``highest_id`` is that of the maps that were there just before (`Survey.highest_id`).

        Raises:
            KeeperError: the iterator cannot be made or read.
        """
        with self._lock:
            if self._link_fd == _NO_LINK:
                self._highest_id = max(self._highest_id, highest_id)
                return Position(self._highest_id, exact=False)
            # Two readers that are not held apart would take the later number for the earlier one.
            next_id = _next_id(self._link_fd)
            if next_id is None:
                raise KeeperError("cannot read how many map IDs were given out: no answer")
            return Position(self._rounds.allocated(next_id - 1, highest_id), exact=True)

    def close(self) -> None:
        """Lets go of the program; a second call does nothing."""
        fd, self._link_fd = self._link_fd, _NO_LINK
        if fd != _NO_LINK:
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


def _next_id(link_fd: int) -> int | None:
    """The ID after the last one; None where the kernel does not name its allocator, or does not let
    it be read: before 5.13 one that is locked down takes the program, which then reads 0.

    The iterator stops at the first map when as much has been written as is asked for: the cost does
    not grow with the number of maps.
    """
    with kernel.holding(kernel.iter_create(link_fd)) as iterator_fd:
        try:
            data = os.read(iterator_fd, _NEXT_ID.size)
        except OSError as error:
            raise KernelError("read the iterator of map IDs", error.errno or 0) from error
    return (int(_NEXT_ID.unpack(data)[0]) or None) if data else None
