"""Text as roff with the man macros. Pure.

In what is given, `code` between backticks is set bold, with every character as it is typed.
"""

import re
from collections.abc import Iterable

_SPECIAL = {"\\": r"\e", "…": r"\&...", "–": r"\[en]"}
_TYPED = _SPECIAL | {"-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}


def page(name: str, section: int, version: str, parts: Iterable[str]) -> str:
    """A whole page; left-aligned, and no word is broken: many are to be typed as they are."""
    head = [
        r".\" SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause",
        r".\" Made by the build, of the tables that the program itself goes by.",
        ".nr HY 0",
        f'.TH {name.upper()} {section} "" "bpfkeeperd {version}" "bpfkeeperd"',
        ".nh",
        ".ad l",
    ]
    return "\n".join([*head, *parts]) + "\n"


def section(title: str) -> str:
    return f'.SH "{title.upper()}"'


def subsection(title: str) -> str:
    return f".SS {bold(title)}"


def paragraph(words: str) -> str:
    return f".PP\n{text(words)}"


def item(tag: str, words: str) -> str:
    """A term, already marked up, with what it means beside it."""
    return f".TP\n{tag}\n{text(words)}"


def example(lines: str) -> str:
    """Lines as they are."""
    return f".PP\n.RS 4\n.nf\n{_lines(typed(lines))}\n.fi\n.RE"


def text(words: str) -> str:
    """Words with `code` in them."""
    parts = re.split("`([^`]*)`", words)
    marked = [bold(part) if number % 2 else _plain(part) for number, part in enumerate(parts)]
    return _lines("".join(marked))


def bold(words: str) -> str:
    return rf"\fB{typed(words)}\fR"


def italic(words: str) -> str:
    return rf"\fI{typed(words)}\fR"


def typed(words: str) -> str:
    return "".join(_TYPED.get(character, character) for character in words)


def _plain(words: str) -> str:
    """With names of other pages, such as bpf(2), set as such."""
    plain = "".join(_SPECIAL.get(character, character) for character in words)
    return re.sub(r"\b([a-z][\w.-]*)(?=\([1-8]\))", lambda match: bold(match[1]), plain)


def _lines(words: str) -> str:
    """No line begins as a request does."""
    return re.sub(r"(?m)^(?=[.'])", r"\\&", words)
