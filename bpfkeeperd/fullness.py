"""How full maps are: the counts, and what of them there is to show for each type. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bpfkeeperd.amounts import bar, compact, compact_bytes, exact, percent
from bpfkeeperd.columns import Cell, Style
from bpfkeeperd.maptypes import BY_NUMBER, Count

CLOSE, FULL = 0.8, 0.95
"""From where on a fill is a warning, and bad."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is in maps now."""

    entries: Mapping[int, int] = field(default_factory=dict)
    """Map ID to entries in use (bytes of ring buffers); of those that could be counted."""
    counted_by: Mapping[int, str] = field(default_factory=dict)
    """Map type to how its maps are counted; empty or absent: they are not, or it is not known."""
    ways: Mapping[int, str] = field(default_factory=dict)
    """Map ID to how it was counted, where that is not as others of its type."""
    ages_seconds: Mapping[int, float] = field(default_factory=dict)
    """Map ID to how old its count is, where it is not of now."""
    problem: str = ""
    """Why there are none, or not of all."""

    def of(self, map_id: int | None) -> int | None:
        return None if map_id is None else self.entries.get(map_id)

    def way(self, map_id: int | None, map_type: int) -> str:
        """How it was counted; empty if it was not."""
        if map_id is None or map_id not in self.entries:
            return ""
        return self.ways.get(map_id) or self.counted_by.get(map_type, "")


def count_of(map_type: int) -> Count:
    known = BY_NUMBER.get(map_type)
    return known.count if known else Count.NONE


def fill_ratio(max_entries: int, used: int | None) -> float | None:
    """0 to 1; None where nothing is counted, or the map has no end."""
    if used is None or not max_entries:
        return None
    return min(used / max_entries, 1.0)


def used_text(map_type: int, used: int | None, *, short: bool) -> str:
    if used is None:
        return "-"
    about = "~" if count_of(map_type) is Count.ESTIMATE else ""
    return f"{about}{_amount(map_type, used, short=short)}"


def of_text(map_type: int, max_entries: int, *, short: bool) -> str:
    """A storage has no end, and no part of it is used."""
    return _amount(map_type, max_entries, short=short) if max_entries else "-"


def _amount(map_type: int, number: int, *, short: bool) -> str:
    if count_of(map_type) is Count.BYTES:
        return compact_bytes(number) if short else f"{exact(number)} B"
    return compact(number) if short else exact(number)


def fill_cell(map_type: int, ratio: float | None, cells: int, *, unicode: bool) -> Cell:
    """A bar and percent; with no ``cells`` percent alone."""
    if ratio is None:
        return Cell(" " * (cells + 4) + "-" if cells else "-")
    share = percent(ratio)
    text = f"{bar(ratio, cells, unicode=unicode)} {share:>4}" if cells else share
    return Cell(text, _style(map_type, ratio))


def _style(map_type: int, ratio: float) -> Style:
    """Whatever evicts is near full by design, and of what has all its slots none is short."""
    known = BY_NUMBER.get(map_type)
    if known is None or known.count is Count.NONE or known.name.startswith("lru_"):
        return Style.PLAIN
    return Style.BAD if ratio >= FULL else Style.WARNING if ratio >= CLOSE else Style.GOOD
