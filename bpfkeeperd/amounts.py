"""Counts, bytes, shares and times as people read them. Pure."""

EXACT_BELOW = 100_000
"""Smaller counts are shown whole: people compare their digits."""

_UNITS = ("", "K", "M", "G", "T", "P", "E")
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_AGES = ((60, "s"), (60, "m"), (24, "h"), (7, "d"), (52, "w"))
_BLOCKS = " ▏▎▍▌▋▊▉█"


def exact(number: int) -> str:
    """``65,535``."""
    return f"{number:,}"


def compact(number: int) -> str:
    """Exact below 100,000, then three digits at most and a unit of a thousand: ``1.2M``.

    Cut, not rounded, so that a map that is not yet full does not look full.
    """
    if abs(number) < EXACT_BELOW:
        return exact(number)
    return f"{'-' if number < 0 else ''}{_three_digits(abs(number), 1000, _UNITS)}"


def compact_bytes(number: int) -> str:
    """``96 B``, ``4 KiB``, ``1.5 MiB``; cut, not rounded."""
    return _three_digits(number, 1024, _BYTE_UNITS, " ")


def _three_digits(number: int, base: int, units: tuple[str, ...], gap: str = "") -> str:
    power = 0
    while power + 1 < len(units) and number >= base ** (power + 1):
        power += 1
    whole, rest = divmod(number, base**power)
    tenth = rest * 10 // base**power
    text = f"{whole}.{tenth}" if tenth and whole < 100 else str(whole)
    return f"{text}{gap}{units[power]}"


def percent(share: float) -> str:
    """``25%``; ``<1%`` of what is not empty, ``>99%`` of what is not full."""
    if 0 < share < 0.01:
        return "<1%"
    if 0.99 < share < 1:
        return ">99%"
    return f"{min(int(share * 100 + 1e-9), 100)}%"


def bar(share: float, cells: int, *, unicode: bool) -> str:
    """A share as a bar of so many characters; only a full one has no gap, only an empty one no
    block."""
    if not unicode:
        filled = int(min(share, 1) * cells)
        if share > 0:
            filled = max(filled, 1)
        return "#" * filled + "." * (cells - filled)
    eighths = int(min(share, 1) * cells * 8)
    if share > 0:
        eighths = max(eighths, 1)
    whole, part = divmod(eighths, 8)
    text = "█" * whole + (_BLOCKS[part] if part else "")
    return text + "░" * (cells - len(text))


def age(seconds: float) -> str:
    """``12s``, ``3m``, ``2h``, ``4d``, ``8w``, ``2y``: cut; what is to come counts as now."""
    number = max(int(seconds), 0)
    for of_the_next, unit in _AGES:
        if number < of_the_next:
            return f"{number}{unit}"
        number //= of_the_next
    return f"{number}y"


def rate(per_second: float, *, of_bytes: bool = False) -> str:
    """``+123/s``, ``-1.5 KiB/s``; empty where nothing changed."""
    if not per_second:
        return ""
    sign, number = "-" if per_second < 0 else "+", abs(per_second)
    if of_bytes:
        return f"{sign}{compact_bytes(max(round(number), 1))}/s"
    return f"{sign}{compact(round(number)) if number >= 10 else f'{number:.1f}'}/s"
