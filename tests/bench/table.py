"""What is measured, as one table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: two things of the same run, their ratio, and whether the goal was met."""

    measure: str
    ours: str
    baseline: str
    ratio: float | None
    """None where the baseline is nothing."""
    goal: str = ""
    met: bool | None = None
    """None: there is no goal."""


HEADINGS = ("measure", "ours", "baseline", "ratio", "goal", "met")


def rows_text(rows: Sequence[Row]) -> str:
    """The table, its columns aligned."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "-" if row.ratio is None else f"{row.ratio:.3g}"
    met = "" if row.met is None else "yes" if row.met else "NO"
    return row.measure, row.ours, row.baseline, ratio, row.goal, met


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1e-1 else f"{seconds * 1e3:.0f} ms"


def alternate(
    rounds: int, ours: Callable[[], float], baseline: Callable[[], float]
) -> tuple[float, float]:
    """The medians of two measurements that take turns; each runs once before, unmeasured."""
    ours()
    baseline()
    pairs = [(ours(), baseline()) for _ in range(rounds)]
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
