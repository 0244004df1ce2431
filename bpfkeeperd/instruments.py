"""What the daemon measures with, opened as far as the kernel and the daemon's rights allow."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self, TypeVar

from bpfkeeperd import kernel
from bpfkeeperd.census import Census, census_maps
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.entries import Manifest
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.layout import Layout
from bpfkeeperd.mapids import MapIdAllocator, Position
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
        self._lock = threading.Lock()  # of closing
        self._closed = False
        self._counter = self._opened(MapCounter.open, "map fullness is counted from time to time")
        self._allocator: MapIdAllocator | None = None
        self._census = Census()
        self._stack.callback(self._census.close)
        self._others: OtherMaps | None = None
        self._others_most = 0
        self._others_opened = self._stack.enter_context(ExitStack())
        self._statistics = self._stack.enter_context(ExitStack())
        self._counts_runs = False
        self.metrics = Metrics(self._sources())
        kernel.release_memory()

    def follow(self, manifest: Manifest) -> None:
        """Measures what the manifest asks for, of what there is now."""
        status = self._status()
        self._census.follow(census_maps(status.maps, self._counted_by))
        self._census.follow_programs(found.path for found in status.programs)
        self._observe(manifest)
        self._count_runs(manifest.program_statistics)

    def open_allocator(self) -> None:
        """Has map IDs counted, exactly where the kernel allows; that takes a moment to begin.

        Before, no figure of them is shown: a bound that the exact one then takes the place of would
        be a jump, and after a restart a counter that falls.
        """
        allocator = MapIdAllocator.open()
        with self._lock:
            if self._closed:
                allocator.close()
            else:
                self._allocator = self._stack.enter_context(allocator)
        kernel.release_memory()

    def open_allocator_soon(self) -> None:
        """Likewise, in a thread: nobody waits for it, not even `close`."""
        threading.Thread(target=self.open_allocator, name="allocator", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Until all that is had from time to time was had once, or so long."""
        self._census.wait(seconds)

    def close(self) -> None:
        with self._lock:
            self._closed = True
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

    def _opened(
        self,
        open_it: Callable[[], AbstractContextManager[_T]],
        without: str,
        stack: ExitStack | None = None,
    ) -> _T | None:
        try:
            return (stack or self._stack).enter_context(open_it())
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
            position=self._position,
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

    def _position(self, highest_id: int) -> Position | None:
        return self._allocator.position(highest_id) if self._allocator else None

    def _other_maps(self, status: Status) -> tuple[Iterable[OtherMap], int] | None:
        others = self._others
        if others is None:
            return None
        return others.found({found.id or 0 for found in status.maps}), self._others_most

    def _observe(self, manifest: Manifest) -> None:
        """Shows maps of others as the manifest wants it, or none."""
        most = manifest.observe_most
        self._others_most = most or 0
        if most is None:
            self._others = None
            self._others_opened.close()
        elif self._others is None:
            own = Layout(manifest.pin_root).own
            self._others = self._opened(
                lambda: OtherMaps(own), "maps of others are not shown", self._others_opened
            )
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
