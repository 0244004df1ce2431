"""Columns of a table: as wide as they must be, on a terminal as narrow as they have to. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bpfkeeperd.celltext import padded, shortened, visible, width_of, wrapped

GAP = "  "


class Style(StrEnum):
    """How text stands out: parameters of the terminal's Select Graphic Rendition."""

    PLAIN = ""
    HEAD = "1"
    FAINT = "2"
    GOOD = "32"
    WARNING = "33"
    BAD = "31"
    DOWN = "1;31"
    CHANGED = "1;36"


@dataclass(frozen=True, slots=True)
class Screen:
    """What text is shown on."""

    width: int | None = None
    """Cells of a line; None where nothing is shortened."""
    colour: bool = False
    unicode: bool = True

    def paint(self, text: str, style: Style) -> str:
        return f"\x1b[{style}m{text}\x1b[m" if self.colour and style and text else text


@dataclass(frozen=True, slots=True)
class Cell:
    text: str = ""
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True)
class Form:
    """One way to show a column."""

    head: str
    cells: Sequence[Cell]
    right: bool = False
    least: int | None = None
    """Its texts may be shortened to this width; None: they may not."""

    @property
    def natural(self) -> int:
        return max([width_of(self.head), *(width_of(cell.text) for cell in self.cells)])

    @property
    def narrowest(self) -> int:
        natural = self.natural
        return natural if self.least is None else min(self.least, natural)


@dataclass(frozen=True, slots=True)
class Laid:
    """A table that has been fitted to a screen: painted lines."""

    head: str
    rows: Sequence[Sequence[str]]
    """The lines of each row: itself, then its notes."""

    def lines(self) -> list[str]:
        return [self.head, *(line for row in self.rows for line in row)]


Columns = Mapping[str, Sequence[Form]]
"""Name of each column to its forms, the widest first; an empty sequence is no column at all."""


def lay_out(
    columns: Columns,
    concessions: Sequence[str],
    notes: Sequence[Sequence[Cell]],
    screen: Screen,
) -> Laid:
    """The table as wide as the screen allows.

    While it is too wide, each of the ``concessions`` in turn has the columns of these names (one
    or more, between blanks) take their next form, and after the last of them go. ``notes`` are what
    stands under each row.
    """
    forms = _chosen(columns, concessions, screen.width)
    widths = _widths(forms, screen.width)
    rows = []
    for number, under in enumerate(notes):
        cells = [form.cells[number] for form in forms]
        rows.append([_line(forms, widths, cells, screen), *_note_lines(under, screen)])
    heads = [Cell(form.head, Style.HEAD) for form in forms]
    return Laid(_line(forms, widths, heads, screen), rows)


def safe(columns: Columns, screen: Screen) -> Columns:
    """The columns with every text made fit for the screen."""

    def fit(form: Form) -> Form:
        cells = [
            Cell(visible(cell.text, unicode=screen.unicode), cell.style) for cell in form.cells
        ]
        return Form(form.head, cells, form.right, form.least)

    return {name: [fit(form) for form in forms] for name, forms in columns.items()}


def _chosen(columns: Columns, concessions: Sequence[str], width: int | None) -> list[Form]:
    """One form of each column that there is room for."""
    level = {name: 0 for name, forms in columns.items() if forms}
    least = {name: [form.narrowest for form in forms] for name, forms in columns.items()}
    for name in concessions:
        if width is None or _total([least[key][at] for key, at in level.items()]) <= width:
            break
        for one in name.split():
            if one in level:
                level[one] += 1
                if level[one] == len(columns[one]):
                    del level[one]
    return [columns[name][at] for name, at in level.items()]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _widths(forms: Sequence[Form], width: int | None) -> list[int]:
    """What is left over goes to what had to be shortened; first to what was to the least."""
    if width is None:
        return [form.natural for form in forms]
    widths = [form.narrowest for form in forms]
    for number, form in sorted(enumerate(forms), key=lambda found: found[1].narrowest):
        spare = width - _total(widths)
        widths[number] += max(min(form.natural - widths[number], spare), 0)
    return widths


def _line(
    forms: Sequence[Form], widths: Sequence[int], cells: Sequence[Cell], screen: Screen
) -> str:
    parts = []
    for form, width, cell in zip(forms, widths, cells, strict=True):
        text = padded(shortened(cell.text, width, unicode=screen.unicode), width, right=form.right)
        parts.append(_painted(text, cell.style, screen))
    return GAP.join(parts).rstrip()


def _painted(text: str, style: Style, screen: Screen) -> str:
    """Blanks around a text stay plain."""
    bare = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    return (
        f"{' ' * before}{screen.paint(bare, style)}{text[before + len(bare) :]}" if bare else text
    )


def _note_lines(notes: Sequence[Cell], screen: Screen) -> list[str]:
    return [
        _painted(line, note.style, screen)
        for note in notes
        for line in wrapped(
            visible(note.text, unicode=screen.unicode),
            screen.width,
            indent="    ",
            first="  ! " if note.style else "    ",
        )
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they must be, numbers to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(width_of(line[column]) for line in lines) for column in range(len(head))]
    numeric = [
        all(
            line[column].strip("~% B").replace(".", "").isdigit() or line[column] in ("-", "")
            for line in lines[1:]
        )
        for column in range(len(head))
    ]
    return "\n".join(
        GAP.join(
            padded(cell, width, right=right)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )
