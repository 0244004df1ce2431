"""Counts, bytes, shares and times as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfkeeperd.amounts import age, bar, compact, compact_bytes, percent, rate


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (65535, "65,535"),
        (99999, "99,999"),
        (100000, "100K"),
        (999999, "999K"),
        (1200000, "1.2M"),
        (1999999, "1.9M"),
        (134217728, "134M"),
        (4294967295, "4.2G"),
        (2**64, "18.4E"),
        (-1200000, "-1.2M"),
    ],
)
def test_compact(number: int, text: str) -> None:
    assert compact(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (4096, "4 KiB"),
        (1536, "1.5 KiB"),
        (1 << 24, "16 MiB"),
        ((1 << 24) - 1, "15.9 MiB"),
    ],
)
def test_compact_bytes(number: int, text: str) -> None:
    assert compact_bytes(number) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0%"),
        (1e-9, "<1%"),
        (0.01, "1%"),
        (0.29, "29%"),
        (0.5, "50%"),
        (0.989, "98%"),
        (0.99, "99%"),
        (0.991, ">99%"),
        (0.9999, ">99%"),
        (1, "100%"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("share", "blocks", "in_ascii"),
    [
        (0, "░░░░", "...."),
        (0.001, "▏░░░", "#..."),
        (0.5, "██░░", "##.."),
        (0.6, "██▍░", "##.."),
        (0.99, "███▉", "###."),
        (1, "████", "####"),
    ],
)
def test_bar(share: float, blocks: str, in_ascii: str) -> None:
    assert bar(share, 4, unicode=True) == blocks
    assert bar(share, 4, unicode=False) == in_ascii


@given(st.floats(0, 1), st.integers(1, 20), st.booleans())
def test_only_a_full_bar_has_no_gap_and_only_an_empty_one_no_block(
    share: float, cells: int, unicode: bool
) -> None:
    text = bar(share, cells, unicode=unicode)
    assert len(text) == cells
    assert (text == ("█" if unicode else "#") * cells) <= (share == 1 or cells == 1)
    assert (text == ("░" if unicode else ".") * cells) == (share == 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (7200, "2h"),
        (86400 * 6, "6d"),
        (86400 * 7, "1w"),
        (86400 * 363, "51w"),
        (86400 * 364, "1y"),
        (1.7e9, "54y"),
    ],
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_rate() -> None:
    assert [rate(n) for n in (0, 0.5, -2, 123.4, -250000)] == [
        "", "+0.5/s", "-2.0/s", "+123/s", "-250K/s",
    ]  # fmt: skip
    assert [rate(n, of_bytes=True) for n in (0, 0.2, -1536)] == ["", "+1 B/s", "-1.5 KiB/s"]
