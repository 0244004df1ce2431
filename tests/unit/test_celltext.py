"""Text in cells of a terminal: nothing in it can be obeyed, and its width is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfkeeperd.celltext import padded, shortened, visible, width_of, wrapped

ANY = st.text(st.characters(), max_size=40)


@pytest.mark.parametrize(
    ("text", "shown", "in_ascii"),
    [
        ("flows", "flows", "flows"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\tc\x7f", r"a\x0ab\x09c\x7f", r"a\x0ab\x09c\x7f"),
        ("\x9b31m", r"\x9b31m", r"\x9b31m"),
        ("caf\udcc3", r"caf\xc3", r"caf\xc3"),
        ("\ud800", r"\ud800", r"\ud800"),
        ("a\u202eb", r"a\u202eb", r"a\u202eb"),
        ("a\u2028b", r"a\u2028b", r"a\u2028b"),
        ("\U000e0001", r"\U000e0001", r"\U000e0001"),
        ("流量", "流量", r"\u6d41\u91cf"),
        ("é", "é", r"\xe9"),
    ],
)
def test_visible(text: str, shown: str, in_ascii: str) -> None:
    assert visible(text) == shown
    assert visible(text, unicode=False) == in_ascii


@given(ANY)
def test_visible_text_is_printable_and_can_be_written(text: str) -> None:
    assert visible(text).isprintable()
    visible(text).encode()
    assert visible(text, unicode=False).isascii()
    assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize(
    ("text", "cells"),
    [("", 0), ("abc", 3), ("流量", 4), ("é", 1), ("e\u0301", 1), ("한글ab", 6), ("\uff21", 2)],
)
def test_width(text: str, cells: int) -> None:
    assert width_of(text) == cells
    assert width_of(padded(text, 8)) == width_of(padded(text, 8, right=True)) == 8


@pytest.mark.parametrize(
    ("text", "width", "cut", "in_ascii"),
    [
        ("connections", 11, "connections", "connections"),
        ("connections", 10, "conne…ions", "conn..ions"),
        ("connections", 5, "co…ns", "co.ns"),
        ("connections", 3, "c…s", "c.s"),
        ("connections", 2, "co", "co"),
        ("connections", 0, "", ""),
        ("流量统计表", 10, "流量统计表", "流量统计表"),
        ("流量统计表", 8, "流量…表", "流..计表"),
        ("流量统计表", 1, "", ""),
        ("abcdee\u0301", 4, "ab…e\u0301", "ab.e\u0301"),
        ("abe\u0301cde", 4, "ab…e", "ab.e"),
    ],
)
def test_shortened(text: str, width: int, cut: str, in_ascii: str) -> None:
    assert shortened(text, width) == cut
    assert shortened(text, width, unicode=False) == in_ascii


@given(ANY, st.integers(0, 50), st.booleans())
def test_shortened_text_fits(text: str, width: int, unicode: bool) -> None:
    assert width_of(shortened(visible(text), width, unicode=unicode)) <= width


def test_wrapped() -> None:
    text = "its pin is gone, it is alive"
    assert wrapped(text, None, "    ", "  ! ") == [f"  ! {text}"]
    assert wrapped(text, 20, "    ", "  ! ") == ["  ! its pin is gone,", "    it is alive"]
    assert wrapped("abcdefghij", 6, "  ") == ["  abcd", "  efgh", "  ij"]
    assert wrapped("ab cdefghij", 6, "  ") == ["  ab", "  cdef", "  ghij"]
    assert wrapped("", 6) == [""]


@given(ANY, st.integers(10, 50))
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    shown = visible(text)
    lines = wrapped(shown, width, "    ", "  ! ")
    assert all(width_of(line) <= width for line in lines)
    assert "".join(line[4:] for line in lines).replace(" ", "") == shown.replace(" ", "")
