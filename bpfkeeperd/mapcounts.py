"""How full maps are, for those who look: from the counting program, and what it does not count
from a thread that takes its time."""

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from bpfkeeperd.census import Census, census_maps
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.fullness import Counts
from bpfkeeperd.maptypes import BY_NUMBER
from bpfkeeperd.state import MapStatus

WAIT_SECONDS = 2.0
"""How long a command waits for what takes its time."""


class MapCounts:
    """A context manager, with one descriptor and a thread where one is needed."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._counter: MapCounter | None = None
        self._problem = ""
        try:
            self._counter = self._stack.enter_context(MapCounter.open())
        except KeeperError as error:
            self._problem = f"not all maps are counted at once: {error}"
        self._census = Census()
        self._stack.callback(self._census.close)
        self._ways: Mapping[int, str] = {n: self._way(n) for n in BY_NUMBER}

    def _way(self, map_type: int) -> str:
        return self._counter.counted_by(map_type) if self._counter else ""

    def follow(self, maps: Iterable[MapStatus], *, wait_seconds: float = 0.0) -> None:
        """Counts these maps from now on; those that take their time are waited for so long."""
        self._census.follow(one for one in census_maps(maps, self._way) if one.count)
        self._census.wait(wait_seconds)

    def read(self) -> Counts:
        """The counts of now.

        Raises:
            KernelError: the counting program cannot be read.
        """
        entries = self._counter.counts() if self._counter else {}
        now = time.monotonic()
        results = self._census.results
        ages = {n: now - one.at for n, one in results.items() if one.at is not None}
        late = {n: one.entries for n, one in results.items() if one.entries is not None}
        ways = {n: one.way for n, one in results.items() if one.way}
        return Counts({**entries, **late}, self._ways, ways, ages, self._problem)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
