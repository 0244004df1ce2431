"""A status becomes samples. Pure.

Nearly all of a scrape is what a status alone decides: that is written once for each status. What
moves from scrape to scrape is `moment`'s.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from bpfkeeperd.exposition import Blocks, block, escape, histogram, labels, number
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.progtypes import PROGRAM_TYPES
from bpfkeeperd.state import (
    AttachmentStatus,
    MapIdChange,
    MapStatus,
    ProgramStatus,
    ReloadResult,
    Status,
)

Samples = Mapping[str, Iterable[str]]
"""Family, without the prefix, to samples as `block` takes them."""

_T = TypeVar("_T")
_K = TypeVar("_K")
_PROGRAM_TYPE_NAMES = {number: name for name, number in PROGRAM_TYPES.items()}


@dataclass(frozen=True, slots=True)
class KeptMap:
    """What stays the same of the moving samples of a map."""

    name: str
    id: int
    """0: nothing is pinned under the name."""
    labels: str
    info: str
    """The labels of map_info up to the value of the last one."""
    capacity: int
    counted_by: str
    """How a scrape counts it; empty: it does not."""
    inner: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeptProgram:
    """Likewise, of a program."""

    labels: str
    id: int
    path: str
    runs_path: str
    """Of the pin of the program whose runs are counted."""


@dataclass(frozen=True, slots=True)
class KeptAttachment:
    """Likewise, of an attachment that is up."""

    labels: str
    prog_id: int
    path: str
    """Of the pin of its link."""


@dataclass(frozen=True, slots=True)
class StatusSeries:
    """All of one status."""

    blocks: Blocks
    maps: tuple[KeptMap, ...]
    programs: tuple[KeptProgram, ...]
    attachments: tuple[KeptAttachment, ...]
    faulty: tuple[str, ...]
    """Maps that could not be shown; an empty name for each other part."""


class _Shown:
    """Takes samples in, and leaves out what cannot be shown: one bad value must not cost the whole
    scrape."""

    def __init__(self) -> None:
        self.samples: dict[str, list[str]] = {}
        self.faulty: list[str] = []

    def add(self, name: str, make: Callable[[_T], tuple[Samples, _K]], found: _T) -> list[_K]:
        """What else was made; nothing: it cannot be shown. ``name`` is that of a map, or empty."""
        try:
            samples, kept = make(found)
        except Exception:
            self.faulty.append(name)
            return []
        for family, lines in samples.items():
            self.samples.setdefault(family, []).extend(lines)
        return [kept]


def status_series(status: Status, counted_by: Callable[[int], str]) -> StatusSeries:
    """``counted_by`` tells how a scrape counts maps of a type; empty: it does not."""
    shown = _Shown()
    maps = [
        kept
        for found in status.maps
        for kept in shown.add(found.name, partial(_map, counted_by), found)
    ]
    programs = [kept for found in status.programs for kept in shown.add("", _program, found)]
    attachments = [
        kept
        for found in status.attachments
        for kept in shown.add("", _attachment, found)
        if kept.prog_id
    ]
    for part in (_drift, _heals, _reloads):
        shown.add("", part, status)
    blocks = {family: block(family, samples) for family, samples in shown.samples.items()}
    faulty = tuple(shown.faulty)
    return StatusSeries(blocks, tuple(maps), tuple(programs), tuple(attachments), faulty)


def _map(counted_by: Callable[[int], str], found: MapStatus) -> tuple[Samples, KeptMap]:
    name = escape(found.name)
    mine = f'{{map="{name}"}}'
    samples: dict[str, Iterable[str]] = {
        "map_reuses_total": (f"{mine} {number(found.reuses)}",),
        "map_id_changes_total": [
            # All reasons, so that rate() sees the first change.
            f'{{map="{name}",reason="{reason}"}} {number(found.changes.get(reason, 0))}'
            for reason in MapIdChange
        ],
    }
    if found.id is not None:
        samples["map_id"] = (f"{mine} {number(found.id)}",)
    if found.max_entries > 0:  # 0: a type without the notion, such as sk_storage
        samples["map_max_entries"] = (f"{mine} {number(found.max_entries)}",)
    if found.last_change:
        at = number(found.last_change.at)
        samples["map_last_id_change_timestamp_seconds"] = (f"{mine} {at}",)
    info = (
        f'{{map="{name}",type="{type_name(found.type)}",key_size="{number(found.key_size)}",'
        f'value_size="{number(found.value_size)}",policy="{found.policy}",counted_by="'
    )
    # One map may stand in several slots.
    inner = tuple({inner.id for inner in found.inner})
    way = counted_by(found.type)
    return samples, KeptMap(found.name, found.id or 0, mine, info, found.max_entries, way, inner)


def _attachment(found: AttachmentStatus) -> tuple[Samples, KeptAttachment]:
    names = ("object", "program", "target", "hook", "digest", "tag")
    values = (found.object, found.program, found.target, found.hook, found.digest, found.tag)
    mine = labels(names[:3], values[:3])
    samples: dict[str, Iterable[str]] = {"attachment_up": (f"{mine} {found.up:d}",)}
    if found.up:
        samples["attachment_info"] = (f"{labels(names, values)} 1",)
    prog_id = found.prog_id if found.up else None
    return samples, KeptAttachment(mine, prog_id or 0, found.path)


def _program(found: ProgramStatus) -> tuple[Samples, KeptProgram]:
    names = ("object", "program", "type", "tag", "digest")
    known = _PROGRAM_TYPE_NAMES.get(found.type, f"type {found.type}")
    values = (found.object, found.program, known, found.tag, found.digest)
    mine = labels(names[:2], values[:2])
    samples: Samples = {
        "program_id": (f"{mine} {number(found.id)}",),
        "program_info": (f"{labels(names, values)} 1",),
    }
    return samples, KeptProgram(mine, found.id, found.path, found.runs_path or found.path)


def _drift(status: Status) -> tuple[Samples, None]:
    kinds = status.drift.items()
    return {"drift": [f"{labels(('kind',), (kind,))} {number(now)}" for kind, now in kinds]}, None


def _heals(status: Status) -> tuple[Samples, None]:
    results = [
        # All kinds, so that rate() sees the first time.
        f"{labels(('kind', 'result'), (kind, result))}"
        f" {number(status.heals.results.get(kind, {}).get(result, 0))}"
        for kind in status.drift
        for result in ("ok", "failed")
    ]
    given_up = (f" {len(status.heals.given_up)}",)
    return {"heals_total": results, "heal_given_up": given_up}, None


def _reloads(status: Status) -> tuple[Samples, None]:
    reloads = status.reloads
    buckets, total_seconds = reloads.duration_buckets, reloads.duration_seconds_sum
    samples: dict[str, Iterable[str]] = {
        "reloads_total": [
            f'{{result="{result}"}} {number(reloads.results.get(result, 0))}'
            for result in ReloadResult
        ],
        "reload_duration_seconds": histogram(buckets, total_seconds),
    }
    if reloads.last_result is not None:
        samples["last_reload_result"] = (
            f'{{result="{result}"}} {int(result is reloads.last_result)}' for result in ReloadResult
        )
    if reloads.last_success_timestamp_seconds is not None:
        last = number(reloads.last_success_timestamp_seconds)
        samples["last_reload_success_timestamp_seconds"] = (f" {last}",)
    return samples, None
