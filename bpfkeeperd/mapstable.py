"""Maps become a table: how full they are, when their IDs changed and why, who pins them. Pure."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bpfkeeperd.amounts import age, rate
from bpfkeeperd.columns import Cell, Columns, Form, Laid, Screen, Style, lay_out, safe
from bpfkeeperd.fullness import Counts, count_of, fill_cell, fill_ratio, of_text, used_text
from bpfkeeperd.maptypes import Count, type_name
from bpfkeeperd.state import InnerStatus, MapStatus

INNER_ROWS_MAX = 16
"""Inner maps shown of each map of maps."""

_WIDE = ("VALUE KEY", "POLICY", "USED OF", "FILL", "LAST CHANGES", "MAP", "PINNED")
_NARROW = ("LAST", "TYPE", "RATE", "OF", "USED", "FILL", "ID", "MAP")
_CONCESSIONS = (*_WIDE, "FILL", "AGE", "MAP", "TYPE", "MAP", "FILL", "PINNED", *_NARROW)
"""At 80 columns the bar has four cells, and ``LAST CHANGE`` tells how many there were."""
_MOVING_CONCESSIONS = (*_WIDE, "FILL", "PINNED", "AGE", "MAP", "TYPE", "MAP", "FILL", *_NARROW)


@dataclass(frozen=True, slots=True)
class Motion:
    """What became of maps since they were shown before."""

    rates: Mapping[int, float] = field(default_factory=dict)
    """Map ID to entries (bytes of ring buffers) more in a second."""
    changed: Collection[str] = ()
    """Names that have another ID."""


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    id: int | None
    type: int
    max_entries: int
    used: int | None
    age_seconds: float | None
    """Of ``used``; None where it is of now."""
    outer: MapStatus | None
    """None of an inner map."""
    notes: tuple[Cell, ...] = ()


def lay_out_maps(
    maps: Iterable[MapStatus],
    counts: Counts,
    screen: Screen,
    *,
    now: float,
    motion: Motion | None = None,
) -> Laid:
    """The table, a group of lines for each map and inner map. ``now`` is Unix time."""
    rows = [row for status in maps for row in _rows(status, counts)]
    columns = _columns(rows, screen, now, motion)
    concessions = _MOVING_CONCESSIONS if motion else _CONCESSIONS
    return lay_out(safe(columns, screen), concessions, [row.notes for row in rows], screen)


def _rows(status: MapStatus, counts: Counts) -> Iterator[_Row]:
    yield _Row(
        status.name,
        status.id,
        status.type,
        status.max_entries,
        counts.of(status.id),
        counts.ages_seconds.get(status.id or 0),
        status,
        (Cell(status.problem, Style.WARNING),) if status.problem else (),
    )
    for found in status.inner[:INNER_ROWS_MAX]:
        used = counts.of(found.id)
        yield _inner_row(found, used)
    more = len(status.inner) - INNER_ROWS_MAX
    if more > 0:
        yield _Row(f"  and {more} more", None, -1, 0, None, None, None)


def _inner_row(found: InnerStatus, used: int | None) -> _Row:
    return _Row(f"  [{found.key}]", found.id, found.type, found.max_entries, used, None, None)


def _columns(rows: Sequence[_Row], screen: Screen, now: float, motion: Motion | None) -> Columns:
    changed = motion.changed if motion else ()
    names = [Cell(row.name, Style.PLAIN if row.outer else Style.FAINT) for row in rows]
    types = [Cell("" if row.type < 0 else type_name(row.type)) for row in rows]
    ids = [
        Cell(_id_text(row), Style.CHANGED if row.outer and row.name in changed else Style.PLAIN)
        for row in rows
    ]
    numbers = [_outer_cells(row.outer) for row in rows]
    return {
        "MAP": [Form("MAP", names, least=least) for least in (None, 20, 12, 8, 1)],
        "ID": [Form("ID", ids, right=True)],
        "TYPE": [Form("TYPE", types, least=least) for least in (None, 9)],
        "USED": [Form("USED", _used(rows, short=short), right=True) for short in (False, True)],
        "OF": [Form("OF", _of(rows, short=short), right=True) for short in (False, True)],
        "FILL": [
            Form("FILL", _fill(rows, cells, screen), right=not cells) for cells in (10, 6, 4, 0)
        ],
        "AGE": [Form("AGE", _ages(rows), right=True)] if any(map(_is_old, rows)) else [],
        "RATE": [Form("    RATE", _rates(rows, motion), right=True)] if motion else [],
        "CHANGES": [Form("CHANGES", [found[0] for found in numbers], right=True)],
        "LAST": [
            Form("LAST CHANGE", [_last_change(row.outer, now) for row in rows]),
            Form("LAST CHANGE", [_changes(row.outer, now) for row in rows]),
        ],
        "PINNED": [
            Form("PINNED BY", [_pinned_by(row.outer, " ") for row in rows]),
            Form("PINNED", [_pinned_by(row.outer, "") for row in rows]),
        ],
        "POLICY": [Form("POLICY", [found[1] for found in numbers])],
        "KEY": [Form("KEY", [found[2] for found in numbers], right=True)],
        "VALUE": [Form("VALUE", [found[3] for found in numbers], right=True)],
    }


def _id_text(row: _Row) -> str:
    if row.type < 0:
        return ""
    return "-" if row.id is None else str(row.id)


def _outer_cells(status: MapStatus | None) -> tuple[Cell, Cell, Cell, Cell]:
    """Changes, policy, sizes of key and value."""
    if status is None:
        return Cell(), Cell(), Cell(), Cell()
    changes = sum(status.changes.values())
    return (
        Cell(str(changes), Style.PLAIN if changes else Style.FAINT),
        Cell(str(status.policy)),
        Cell(f"{status.key_size} B"),
        Cell(f"{status.value_size} B"),
    )


def _used(rows: Sequence[_Row], *, short: bool) -> list[Cell]:
    return [
        Cell() if row.type < 0 else Cell(used_text(row.type, row.used, short=short)) for row in rows
    ]


def _of(rows: Sequence[_Row], *, short: bool) -> list[Cell]:
    return [
        Cell() if row.type < 0 else Cell(of_text(row.type, row.max_entries, short=short))
        for row in rows
    ]


def _fill(rows: Sequence[_Row], cells: int, screen: Screen) -> list[Cell]:
    return [
        Cell()
        if row.type < 0
        else fill_cell(
            row.type, fill_ratio(row.max_entries, row.used), cells, unicode=screen.unicode
        )
        for row in rows
    ]


def _is_old(row: _Row) -> bool:
    return row.age_seconds is not None


def _ages(rows: Sequence[_Row]) -> list[Cell]:
    return [Cell("" if row.age_seconds is None else age(row.age_seconds)) for row in rows]


def _rates(rows: Sequence[_Row], motion: Motion | None) -> list[Cell]:
    rates = motion.rates if motion else {}
    return [
        Cell(
            rate(rates.get(row.id or 0, 0.0), of_bytes=count_of(row.type) is Count.BYTES),
            Style.CHANGED,
        )
        for row in rows
    ]


def _last_change(status: MapStatus | None, now: float, ago: str = " ago") -> Cell:
    if status is None:
        return Cell()
    if status.last_change is None:
        return Cell("unknown" if any(status.changes.values()) else "never", Style.FAINT)
    change = status.last_change
    return Cell(f"{age(now - change.at)}{ago} {change.reason}")


def _changes(status: MapStatus | None, now: float) -> Cell:
    """The last one, and how many there were if there was another."""
    cell, number = _last_change(status, now, ago=""), sum(status.changes.values()) if status else 0
    return Cell(f"{cell.text} x{number}", cell.style) if number > 1 else cell


def _pinned_by(status: MapStatus | None, gap: str) -> Cell:
    if status is None:
        return Cell()
    others = f"{gap}+{len(status.other_pins)}" if status.other_pins else ""
    if status.id is None:
        return Cell(f"-{others}")
    return Cell(f"{'keeper' if status.made else 'others'}{others}")
