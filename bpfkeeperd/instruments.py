"""What the daemon measures with, opened as far as the kernel and the daemon's rights allow."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self, TypeVar

from bpfkeeperd import kernel
from bpfkeeperd.census import Census, CensusMap, census_maps
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.entries import Manifest
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.layout import Layout
from bpfkeeperd.mapids import MapIdAllocator
from bpfkeeperd.metrics import Metrics, Sources
from bpfkeeperd.moment import OtherMap, SlowFigures
from bpfkeeperd.othermaps import OtherMaps
from bpfkeeperd.state import ProgramFigures, Status

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Instruments:
    """All of them; `close` lets go of them.

    What cannot be opened is said once, and its figures are not shown.
    """

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status
        self._stack = ExitStack()
        self._told: set[str] = set()
        self._counter = self._opened(MapCounter.open, "map fullness is counted from time to time")
        self._allocator = MapIdAllocator()  # the highest ID seen, until there is a better one
        self._census = Census()
        self._followed: tuple[CensusMap, ...] = ()
        self._stack.callback(self._census.close)
        self._others: OtherMaps | None = None
        """Opened once, and then kept: a scrape may be reading it when it is wanted no more."""
        self._others_most: int | None = None
        self._statistics = self._stack.enter_context(ExitStack())
        self._counts_runs = False
        self.metrics = Metrics(self._sources())
        kernel.release_memory()

    def follow(self, manifest: Manifest) -> None:
        """Measures what the manifest asks for, of what there is now."""
        status = self._status()
        self._followed = tuple(census_maps(status.maps, self._counted_by))
        self._census.follow(self._followed)
        self._census.follow_programs(found.path for found in status.programs)
        self._observe(manifest)
        self._count_runs(manifest.program_statistics)

    def open_allocator(self) -> None:
        """Has map IDs counted exactly, where the kernel allows; that takes a moment to begin."""
        self._allocator = self._stack.enter_context(MapIdAllocator.open())
        kernel.release_memory()

    def wait(self, seconds: float) -> None:
        """Until all that is had from time to time was had once, or so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all(map(self._is_had, self._followed)):
            time.sleep(0.01)

    def _is_had(self, wanted: CensusMap) -> bool:
        found = self._census.results.get(wanted.id)
        if found is None:
            return False
        return not wanted.count or bool(found.at or found.error or found.uncounted)

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

    def _opened(self, open_it: Callable[[], AbstractContextManager[_T]], without: str) -> _T | None:
        try:
            return self._stack.enter_context(open_it())
        except (KeeperError, OSError) as error:
            self._tell(f"{without}: {error}")
            return None

    def _tell(self, problem: str) -> None:
        """Once: it is tried again with every look."""
        if problem not in self._told:
            self._told.add(problem)
            log.warning("%s", problem)

    def _sources(self) -> Sources:
        counter = self._counter
        return Sources(
            status=self._status,
            survey=counter.survey if counter else lambda: None,
            counted_by=self._counted_by,
            slow=self._slow,
            programs=_program_figures,
            program_memory=lambda: self._census.program_memory,
            statistics=lambda: self._counts_runs or kernel.statistics_enabled(),
            position=lambda highest_id: self._allocator.position(highest_id),
            others=self._other_maps,
        )

    def _counted_by(self, map_type: int) -> str:
        return self._counter.counted_by(map_type) if self._counter else ""

    def _slow(self) -> Mapping[int, SlowFigures]:
        now = time.monotonic()
        return {
            map_id: SlowFigures(
                entries=found.entries,
                way=found.way,
                age_seconds=now - found.at if found.at is not None else 0.0,
                memory_bytes=found.memory_bytes,
                error=found.error,
            )
            for map_id, found in self._census.results.items()
        }

    def _other_maps(self, status: Status) -> tuple[Iterable[OtherMap], int] | None:
        others, most = self._others, self._others_most
        if others is None or most is None:
            return None
        return others.found({found.id or 0 for found in status.maps}), most

    def _observe(self, manifest: Manifest) -> None:
        """Shows maps of others as the manifest wants it, or none."""
        self._others_most = manifest.observe_most
        if self._others_most is None:
            return
        if self._others is None:
            own = Layout(manifest.pin_root).own
            self._others = self._opened(lambda: OtherMaps(own), "maps of others are not shown")
        if self._others:
            self._others.look_for_pins(time.monotonic())

    def _count_runs(self, wanted: bool) -> None:
        if wanted and not self._counts_runs:
            try:
                self._statistics.enter_context(kernel.counting_runs())
            except KeeperError as error:
                self._tell(f"runs of programs are not counted: {error}")
                return
        elif self._counts_runs and not wanted:
            self._statistics.close()
        self._counts_runs = wanted


def _program_figures(paths: Sequence[str]) -> Mapping[str, ProgramFigures]:
    found = zip(paths, kernel.program_figures(paths), strict=True)
    return {path: figures for path, figures in found if not isinstance(figures, int)}
