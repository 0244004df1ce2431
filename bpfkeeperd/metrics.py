"""What Prometheus sees: the series of the last status, and the figures of this moment.

The only user of prometheus_client, for the figures of the process. A map's name is the label and
its ID a value: an ID in a label would break rate() at the very moment that it is there to show.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from bpfkeeperd import __version__
from bpfkeeperd.counting import Survey
from bpfkeeperd.exposition import CONTENT_TYPE, Blocks, block, exposition, labels
from bpfkeeperd.mapids import LIMIT, Position
from bpfkeeperd.moment import (
    OtherMap,
    SlowFigures,
    machine_blocks,
    map_blocks,
    missing,
    other_blocks,
    program_blocks,
    since_block,
)
from bpfkeeperd.series import StatusSeries, status_series
from bpfkeeperd.state import ProgramFigures, Status

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.25
"""How long a scrape waits for the next status, when what the last one names is gone: most often a
reload is under way, which tells in a moment what took its place."""
HASTE_SECONDS = 10.0
"""After a wait in vain the next scrapes do not wait: something is broken, and they are many."""
_PAUSE_SECONDS = 0.002
_CLOCK_STEP_SECONDS = 1.0
"""By how much the clock must be set for the time of boot to be another."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the figures come from. Whatever one of them raises is counted, and costs no other."""

    status: Callable[[], Status]
    survey: Callable[[], Survey | None]
    """All maps counted; None: this kernel has no way to do that at once."""
    counted_by: Callable[[int], str]
    """How that counts maps of a type; empty: it does not."""
    slow: Callable[[], Mapping[int, SlowFigures]]
    """By map ID, what is had from time to time."""
    programs: Callable[[Sequence[str]], Mapping[str, ProgramFigures]]
    """By path of their pins."""
    program_memory: Callable[[], Mapping[int, int]]
    """Bytes, by program ID."""
    statistics: Callable[[], bool]
    """Whether the kernel counts runs of programs."""
    position: Callable[[int], Position | None]
    """How many map IDs were given out, given the highest that is in use; None: not known yet."""
    others: Callable[[Status], tuple[Iterable[OtherMap], int] | None]
    """The maps that are none of the status, and how many groups of them are to be shown; None: they
    are not to be shown."""


@dataclass(frozen=True, slots=True)
class _Look:
    """A status, and figures that go with it."""

    page: "_Page"
    survey: Survey | None
    figures: Mapping[str, ProgramFigures] | None
    """None: they could not be had, of any program."""
    faulty: tuple[str, ...]
    """An empty name for each part that could not be had."""

    @property
    def is_whole(self) -> bool:
        """Nothing that the status names was gone already."""
        series = self.page.series
        if self.survey and missing(series.maps, self.survey.counts):
            return False
        figures = self.figures
        return figures is None or all(found.path in figures for found in series.programs)


@dataclass(frozen=True, slots=True)
class _Page:
    """What is written once for a status."""

    status: Status
    series: StatusSeries
    pinned_at: tuple[float | None, ...]
    """Of each attachment: Unix time at which its link was pinned."""


class Metrics:
    """The metrics of one daemon; may be rendered by several threads at once."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._errors: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._page: _Page | None = None
        self._hasty_until = 0.0
        self._boot = _boot_time()
        version = f"{labels(('version',), (__version__,))} 1"
        self._build: Blocks = {"build_info": block("build_info", (version,))}
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    def render(self, *, process: bool = True) -> tuple[bytes, str]:
        """The text of a scrape, and its content type; with the figures of the process or without.

        A map that cannot be shown is left out and counted in bpfkeeper_scrape_errors_total.
        """
        look = self._look()
        page, survey = look.page, look.survey
        parts: list[Blocks] = [self._build, page.series.blocks]
        faulty = [*look.faulty, *page.series.faulty]
        slow: Mapping[int, SlowFigures] = {}
        with _noting(faulty):
            slow = self._sources.slow()
        counts = survey.counts if survey else None
        blocks, uncounted = map_blocks(page.series.maps, counts, slow)
        parts.append(blocks)
        faulty += uncounted
        if survey:
            with _noting(faulty):
                parts.append(self._machine(survey))
        with _noting(faulty):
            others = self._sources.others(page.status)
            if others:
                maps, most = others
                parts.append(other_blocks(maps, counts or {}, most))
        with _noting(faulty):
            blocks, unread = self._programs(page, look.figures or {})
            parts.append(blocks)
            if look.figures is not None:
                faulty += [""] * unread
        parts.append(self._error_blocks(page.series, faulty))
        text = exposition(*parts).encode()
        return text + (generate_latest(self._process) if process else b""), CONTENT_TYPE

    def _look(self) -> _Look:
        """A status and figures that go together, if they can be had."""
        look, began = self._look_once(), time.monotonic()
        if look.is_whole or began < self._hasty_until:
            return look
        while not look.is_whole and time.monotonic() < began + PATIENCE_SECONDS:
            time.sleep(_PAUSE_SECONDS)
            look = self._look_once()
        if not look.is_whole:
            self._hasty_until = time.monotonic() + HASTE_SECONDS
        return look

    def _look_once(self) -> _Look:
        page = _Page(Status(), status_series(Status(), self._sources.counted_by), ())
        survey: Survey | None = None
        figures: Mapping[str, ProgramFigures] | None = None
        faulty: list[str] = []
        with _noting(faulty):
            page = self._page_of(self._sources.status())
        with _noting(faulty):
            survey = self._sources.survey()
        with _noting(faulty):
            found = page.series.programs
            paths = {path for each in found for path in (each.path, each.runs_path)}
            figures = self._sources.programs(list(paths)) if paths else {}
        return _Look(page, survey, figures, tuple(faulty))

    def _page_of(self, status: Status) -> _Page:
        page = self._page
        if page is None or page.status is not status:
            series = status_series(status, self._sources.counted_by)
            pinned_at = tuple(_changed_at(found.path) for found in series.attachments)
            self._page = page = _Page(status, series, pinned_at)
        return page

    def _machine(self, survey: Survey) -> Blocks:
        position = self._sources.position(survey.highest_id)
        if position is None:
            return {"kernel_maps": block("kernel_maps", (f" {survey.maps}",))}
        return machine_blocks(
            survey.maps,
            ids_allocated=position.allocated,
            exact=position.exact,
            id_limit=LIMIT,
            headroom=position.headroom,
        )

    def _programs(self, page: _Page, figures: Mapping[str, ProgramFigures]) -> tuple[Blocks, int]:
        """And how many of them could not be read."""
        boot = _boot_time()
        if abs(boot - self._boot) > _CLOCK_STEP_SECONDS:  # else the times would tremble
            self._boot = boot
        programs = page.series.programs
        blocks, faulty = program_blocks(
            programs,
            figures,
            self._sources.program_memory(),
            statistics=self._sources.statistics(),
            boot=self._boot,
        )
        loaded = {
            found.id: self._boot + figures[found.path].load_time_ns / 1e9
            for found in programs
            if found.path in figures
        }
        since = since_block(page.series.attachments, loaded, page.pinned_at)
        return {**blocks, **since}, faulty

    def _error_blocks(self, series: StatusSeries, faulty: Iterable[str]) -> Blocks:
        """With what is ``faulty`` in this scrape. Of maps that are there; one that has had no error
        is there with 0, so that rate() sees its first one."""
        names = dict.fromkeys(("", *(found.name for found in series.maps), *series.faulty))
        with self._lock:
            self._errors.update(faulty)
            for gone in self._errors.keys() - names.keys():
                del self._errors[gone]
            errors = [(labels(("map",), (name,)), self._errors[name]) for name in names]
        name = "scrape_errors_total"
        return {name: block(name, (f"{mine} {number}" for mine, number in errors))}


@contextmanager
def _noting(faulty: list[str]) -> Iterator[None]:
    """What fails in the block gets an empty name there, and the scrape goes on without it."""
    try:
        yield
    except Exception:
        log.debug("cannot show all", exc_info=True)
        faulty.append("")


def _boot_time() -> float:
    """In Unix time, by the clock as it is set now."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _changed_at(path: str) -> float | None:
    """When a pin was made, in Unix time; None without one."""
    try:
        return os.stat(path).st_ctime if path else None
    except OSError:
        return None
