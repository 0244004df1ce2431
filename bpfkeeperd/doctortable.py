"""The rows of `doctor` as text for people. Pure."""

from collections.abc import Iterator, Sequence

from bpfkeeperd.celltext import visible, wrapped
from bpfkeeperd.columns import Screen, Style
from bpfkeeperd.judge import Row, Verdict, is_fit

WIDTH = 80
"""Cells of a line where the text goes to no terminal."""
_STYLES = {
    Verdict.OK: Style.GOOD,
    Verdict.LIMITED: Style.WARNING,
    Verdict.MISSING: Style.BAD,
    Verdict.UNKNOWN: Style.FAINT,
}


def doctor_text(rows: Sequence[Row], screen: Screen) -> str:
    """A line for each row, with what does not work and what to do below it; then the verdict."""
    return "\n".join([*_lines(rows, screen), "", *_summary(rows, screen)])


def _lines(rows: Sequence[Row], screen: Screen) -> Iterator[str]:
    names = max(len(row.name) for row in rows)
    states = max(len(verdict) for verdict in Verdict)
    width = screen.width or WIDTH
    indent = " " * (names + states + 4)
    for row in rows:
        lead = f"{row.name:{names}}  {row.verdict:{states}}  "
        found = visible(row.found, unicode=screen.unicode)
        first, *others = wrapped(found, width, indent=indent, first=lead)
        state = screen.paint(row.verdict, _STYLES[row.verdict])
        yield first.replace(f"  {row.verdict}", f"  {state}", 1)
        yield from others
        note = ": ".join(part for part in (row.without, row.remedy) if part)
        if note:
            text = visible(note, unicode=screen.unicode)
            yield from wrapped(text, width, indent=" " * 6, first="    ! ")


def _summary(rows: Sequence[Row], screen: Screen) -> list[str]:
    missing = [row.name for row in rows if row.verdict is Verdict.MISSING]
    limited = sum(row.verdict is Verdict.LIMITED for row in rows)
    if not is_fit(rows):
        text, style = f"the daemon cannot do its work here: {', '.join(missing)}", Style.BAD
    elif limited:
        text, style = f"the daemon can do its work here, {limited} of it limited", Style.WARNING
    else:
        text, style = "the daemon can do its work here", Style.GOOD
    return [screen.paint(line, style) for line in wrapped(text, screen.width or WIDTH)]
