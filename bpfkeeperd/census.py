"""Entries and memory of maps that no scrape can wait for, told by a thread that takes its time.

It is for kernels that do not take the counting program, and for figures that it does not have:
slots of arrays that are not zero, and memory. Nobody waits for the thread, and it works a fiftieth
of the time.
"""

import errno
import heapq
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from bpfkeeperd import kernel
from bpfkeeperd.errors import ENOTSUPP, KernelError
from bpfkeeperd.mapmemory import memory_changes
from bpfkeeperd.maptypes import BY_NUMBER, Count
from bpfkeeperd.state import MapStatus

BUDGET_SHARE = 0.02
"""Of the time of one CPU."""
INTERVAL_SECONDS = 15.0
"""From one count of a map to the next, at least."""
COUNTED_ENTRIES_MAX = 1 << 24
"""Larger maps are not counted: it takes time for each bucket or slot, also for an empty one."""
COUNT_SECONDS_MAX = 20.0
SLICE_SECONDS = 0.002
"""What may be done before there is a rest."""
CHUNK = 64
"""How many pins are looked at in one call."""
_NO_ENTRIES = (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP, errno.ENOSPC)
"""What types without keys, or without values for user space, answer; ENOSPC: a map of sockets whose
values are too small for what the kernel tells of them."""


@dataclass(frozen=True, slots=True)
class CensusMap:
    id: int
    path: str
    """Of its pin."""
    type: int
    max_entries: int
    flags: int
    count: Literal["", "entries", "nonzero"]
    """Empty: only its memory is read. ``nonzero``: slots of an array with a byte that is set."""
    name: str


@dataclass(frozen=True, slots=True)
class CensusResult:
    """What is known of one map. A figure that cannot be read any more stays as it was."""

    entries: int | None = None
    way: str = ""
    """How they were counted: ``batch``, ``next_key`` or ``nonzero``."""
    at: float | None = None
    """When they were counted (time.monotonic())."""
    memory_bytes: int | None = None
    error: str = ""
    """What failed last time."""
    uncounted: str = ""
    """Why it is not counted at all though that was asked for."""


def census_maps(maps: Iterable[MapStatus], counted_by: Callable[[int], str]) -> Iterator[CensusMap]:
    """What is to be had of each map from time to time: its memory, and its entries where no scrape
    counts them."""
    for found in maps:
        known = BY_NUMBER.get(found.type)
        if found.id is None or known is None:
            continue
        count: Literal["", "entries", "nonzero"] = ""
        if found.count_nonzero:
            count = "nonzero"
        elif known.count is Count.ENTRIES and not counted_by(found.type):
            count = "entries"
        yield CensusMap(
            found.id, found.path, found.type, found.max_entries, found.flags, count, found.name
        )


class Census:
    """Follows maps and programs; `close` ends its thread.

    ``results`` (by map ID) and ``program_memory`` (bytes by program ID) can be read without a lock:
    each is replaced as a whole. No descriptor is held but for the moment of a look, so that no map
    lives longer for it, and a pin that leads to another map or nowhere is passed over.
    """

    def __init__(self) -> None:
        self.results: Mapping[int, CensusResult] = MappingProxyType({})
        self.program_memory: Mapping[int, int] = MappingProxyType({})
        self.programs_seen: tuple[str, ...] = ()
        """The paths at which that was looked for last."""
        self.worked_seconds = self.rested_seconds = 0.0
        self.unrested_seconds = 0.0
        """Of the work, what no rest has followed yet."""
        self._changed = threading.Condition()
        self._maps: dict[int, CensusMap] = {}
        self._due: dict[int, float] = {}
        self._queue: list[tuple[float, int, int]] = []
        """When, max_entries and ID: of those that are due, small ones first."""
        self._programs: tuple[str, ...] = ()
        self._programs_due = 0.0
        self._found: dict[int, CensusResult] = {}
        """What is not yet among the results."""
        self._closed = threading.Event()
        self._stop = kernel.StopFlag()
        self._thread: threading.Thread | None = None

    def follow(self, maps: Iterable[CensusMap]) -> None:
        """These maps from now on, and no others. New ones are looked at at once."""
        wanted = {one.id: one for one in maps}
        with self._changed:
            if wanted == self._maps:
                return
            kept = {number: due for number, due in self._due.items() if number in wanted}
            for number, one in wanted.items():
                before = self._maps.get(number)
                if before is None or before.count != one.count:
                    kept.pop(number, None)
            self._maps = wanted
            self._due = {number: kept.get(number, 0.0) for number in wanted}
            self._queue = [(due, wanted[n].max_entries, n) for n, due in self._due.items()]
            heapq.heapify(self._queue)
            kept_results = {n: one for n, one in self.results.items() if n in wanted}
            self.results = MappingProxyType(kept_results)
            self._wake()

    def follow_programs(self, paths: Iterable[str]) -> None:
        """The programs pinned at these paths from now on, and no others."""
        wanted = tuple(paths)
        with self._changed:
            if wanted != self._programs:
                self._programs = wanted
                self._programs_due = 0.0
                self._wake()

    def wait(self, seconds: float) -> None:
        """Until each program and map that is followed was looked at, and counted where that is
        wanted, or so long. What is pinned elsewhere is waited for in vain."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._all_is_had():
            time.sleep(0.01)

    def _all_is_had(self) -> bool:
        maps = all(map(self._is_had, self._maps.values()))
        return maps and self.programs_seen == self._programs

    def _is_had(self, wanted: CensusMap) -> bool:
        found = self.results.get(wanted.id)
        if found is None:
            return False
        return not wanted.count or bool(found.at or found.error or found.uncounted)

    def close(self) -> None:
        """Ends the thread, within some milliseconds; a second call does nothing."""
        with self._changed:
            self._closed.set()
            self._stop.set()
            self._changed.notify_all()
        if self._thread:
            self._thread.join()

    def _wake(self) -> None:
        if self._thread is None and not self._closed.is_set():
            self._thread = threading.Thread(target=self._run, name="census", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while not self._closed.is_set():
            maps, programs = self._next()
            if maps:
                self._look_at(maps)
            if programs:
                self._look_at_programs(programs)

    def _next(self) -> tuple[list[CensusMap], tuple[str, ...]]:
        """Waits for what is due."""
        with self._changed:
            while not self._closed.is_set():
                now = time.monotonic()
                programs = self._programs if self._programs_due <= now else ()
                if programs:
                    self._programs_due = now + INTERVAL_SECONDS
                maps = list[CensusMap]()
                while self._queue and self._queue[0][0] <= now and len(maps) < CHUNK:
                    _, entries, number = heapq.heappop(self._queue)
                    due = self._due[number] = now + INTERVAL_SECONDS
                    heapq.heappush(self._queue, (due, entries, number))
                    maps.append(self._maps[number])
                if maps or programs:
                    return maps, programs
                times = [due for due, _, _ in self._queue[:1]]
                times += [self._programs_due] if self._programs else []
                self._changed.wait(min(times) - now if times else None)
        return [], ()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Work that is followed by a rest, if there was enough of it."""
        begun = time.monotonic()
        yield
        if self.unrested_seconds + time.monotonic() - begun >= SLICE_SECONDS:
            self._publish()
        ended = time.monotonic()
        self.worked_seconds += ended - begun
        self.unrested_seconds += ended - begun
        rest_seconds = self.unrested_seconds * (1 / BUDGET_SHARE - 1)
        if self.unrested_seconds >= SLICE_SECONDS and not self._closed.wait(rest_seconds):
            self.rested_seconds += time.monotonic() - ended
            self.unrested_seconds = 0.0

    def _look_at(self, maps: list[CensusMap]) -> None:
        with self._working():
            known = self._with_memory(maps)
            self._found.update(known)
        for one in maps:
            if one.count and one.id in known:
                with self._working():
                    # Others may be followed by now, and it may be closed.
                    if self._maps.get(one.id) == one and not self._closed.is_set():
                        result = _counted(one, known[one.id], self._stop)
                        if result is not None:
                            self._found[one.id] = result
        with self._working():
            self._publish()

    def _with_memory(self, maps: list[CensusMap]) -> dict[int, CensusResult]:
        """What is known of these maps and their memory, but for those that are elsewhere now."""
        found = {
            one.id: replace(self.results.get(one.id, CensusResult()), error="") for one in maps
        }
        unread = [
            one
            for one in maps
            if found[one.id].memory_bytes is None or memory_changes(one.type, one.flags)
        ]
        answers = kernel.maps_memory([one.path for one in unread])
        for one, answer in zip(unread, answers, strict=True):
            match answer:
                case (one.id, memory_bytes):
                    # Before Linux 6.4 most kernels multiply max_entries by the sizes of key and
                    # value, of which a ring buffer has none: that is no figure.
                    found[one.id] = replace(found[one.id], memory_bytes=memory_bytes or None)
                case (_, _) | errno.ENOENT | errno.EINVAL:  # the name leads somewhere else
                    del found[one.id]
                case int(number):
                    error = KernelError(f"read the memory of map {one.name}", number)
                    found[one.id] = replace(found[one.id], error=str(error))
        return found

    def _publish(self) -> None:
        if self._found:
            with self._changed:
                news = {n: result for n, result in self._found.items() if n in self._maps}
                self.results = MappingProxyType({**self.results, **news})
            self._found = {}

    def _look_at_programs(self, paths: tuple[str, ...]) -> None:
        """The memory of a program stays as it is, and costs as much again to read."""
        known, found = self.program_memory, dict[int, int]()
        for at in range(0, len(paths), CHUNK):
            with self._working():
                chunk = paths[at : at + CHUNK]
                new = []
                for path, figures in zip(chunk, kernel.program_figures(chunk), strict=True):
                    if isinstance(figures, int):
                        continue  # it went: others follow what is there now
                    if figures.id in known:
                        found[figures.id] = known[figures.id]
                    else:
                        new.append(path)
                for figures in kernel.program_figures(new, memory=True):
                    if not isinstance(figures, int):
                        found[figures.id] = figures.memory_bytes
            if self._closed.is_set():
                return
        self.program_memory = MappingProxyType(found)
        self.programs_seen = paths


def _counted(one: CensusMap, known: CensusResult, stop: kernel.StopFlag) -> CensusResult | None:
    """A map with its count; None where its name leads to another map or nowhere."""
    if one.max_entries > COUNTED_ENTRIES_MAX:
        text = f"max_entries is above {COUNTED_ENTRIES_MAX}: a count costs time for each of them"
        return replace(known, uncounted=text)
    try:
        fd = kernel.pinned_for_reading(one.path)
        if fd is None:
            return None
        try:
            if kernel.map_info(fd).id != one.id:
                return None
            counted = kernel.count_entries(
                fd, nonzero=one.count == "nonzero", seconds=COUNT_SECONDS_MAX, stop=stop
            )
        finally:
            os.close(fd)
    except KernelError as error:
        if error.errno == errno.ECANCELED:
            return None
        if error.errno in _NO_ENTRIES:
            return replace(known, uncounted="the kernel lists no entries of maps like this one")
        return replace(known, error=f"map {one.name}: {error}")
    return replace(known, entries=counted.entries, way=counted.way, at=time.monotonic())
