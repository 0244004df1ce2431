"""Text in cells of a terminal: what is safe to show, how wide it is, cut and wrapped. Pure."""

import functools
import unicodedata


def visible(text: str, *, unicode: bool = True) -> str:
    r"""The text with all that a terminal could obey, or a file could not hold, as escapes.

    Names on bpffs hold any byte but dot and slash; those that are no UTF-8 come as surrogates and
    are shown as ``\xNN``. Without ``unicode`` nothing but ASCII is left.
    """
    if text.isprintable() and (unicode or text.isascii()):
        return text
    return "".join(
        character
        if character.isprintable() and (unicode or character.isascii())
        else _escaped(ord(character))
        for character in text
    )


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as os.fsdecode() has it
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def width_of(text: str) -> int:
    """Cells that visible text takes."""
    return len(text) if text.isascii() else sum(map(_cells, text))


@functools.lru_cache(maxsize=1 << 10)
def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def shortened(text: str, width: int, *, unicode: bool = True) -> str:
    """The text in no more cells than these; of one that is too long its two ends are left."""
    if width_of(text) <= width:
        return text
    mark = "\N{HORIZONTAL ELLIPSIS}" if unicode else ".." if width >= 6 else "."
    room = width - len(mark)
    if room < 2:
        return _start(text, width)
    start = _start(text, (room + 1) // 2)
    return f"{start}{mark}{_end(text, room - width_of(start))}"


def _start(text: str, width: int) -> str:
    used = 0
    for place, character in enumerate(text):
        used += _cells(character)
        if used > width:
            return text[:place]
    return text


def _end(text: str, width: int) -> str:
    used = 0
    for place in range(len(text) - 1, -1, -1):
        used += _cells(text[place])
        if used > width:
            place += 1
            while place < len(text) and not _cells(text[place]):  # its letter was cut off
                place += 1
            return text[place:]
    return text


def padded(text: str, width: int, *, right: bool = False) -> str:
    """The text with blanks up to a width; to the right end if wanted."""
    blanks = " " * (width - width_of(text))
    return f"{blanks}{text}" if right else f"{text}{blanks}"


def wrapped(text: str, width: int | None, indent: str = "", first: str | None = None) -> list[str]:
    """Lines of whole words, no wider than that where words allow it; else they are cut."""
    lead = indent if first is None else first
    if width is None:
        return [f"{lead}{text}"]
    lines, line = list[str](), ""
    for word in text.split(" "):
        room = width - width_of(lead if not lines else indent)
        longer = f"{line} {word}" if line else word
        if width_of(longer) <= room:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word
        while width_of(line) > max(room := width - width_of(indent), 2):
            piece = _start(line, max(room, 2))
            lines.append(piece)
            line = line[len(piece) :]
    lines.append(line)
    return [f"{indent if number else lead}{line}".rstrip() for number, line in enumerate(lines)]
