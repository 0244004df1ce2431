"""What is known of where text goes: width, colours, and whether it takes more than ASCII."""

import io
import os
import pty
import struct
import termios
from collections.abc import Iterator, Mapping
from fcntl import ioctl
from typing import TextIO

import pytest

from bpfkeeperd.columns import Screen
from bpfkeeperd.terminal import screen_of, size_of

UTF8 = {"LANG": "de_DE.UTF-8", "TERM": "xterm"}


@pytest.fixture
def tty() -> Iterator[TextIO]:
    """The end of a terminal that programs write to; 97 columns."""
    ours, theirs = pty.openpty()
    ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 31, 97, 0, 0))
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        yield stream
    os.close(ours)


def file(encoding: str = "utf-8") -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def test_a_terminal(tty: TextIO) -> None:
    assert screen_of(tty, UTF8) == Screen(97, colour=True, unicode=True)
    assert size_of(tty.fileno()) == (97, 31)


def test_a_terminal_that_does_not_tell_its_size(tty: TextIO) -> None:
    ioctl(tty.fileno(), termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))
    assert screen_of(tty, UTF8).width == 80
    assert size_of(tty.fileno()) == (80, 24)


@pytest.mark.parametrize(
    ("more", "colour"),
    [
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": ""}, False),
    ],
)
def test_colour(tty: TextIO, more: Mapping[str, str], colour: bool) -> None:
    assert screen_of(tty, {**UTF8, **more}).colour == colour


def test_a_file_is_never_shortened_or_coloured() -> None:
    assert screen_of(file(), UTF8) == Screen(None, colour=False, unicode=True)


def test_no_output_at_all() -> None:
    assert screen_of(None, UTF8) == Screen(None, colour=False, unicode=False)


@pytest.mark.parametrize(
    ("environment", "unicode"),
    [
        ({}, True),
        ({"LANG": "C.UTF-8"}, True),
        ({"LANG": "en_US.utf8"}, True),
        ({"LANG": "en_US.ISO-8859-1"}, False),
        ({"LC_ALL": "C", "LANG": "C.UTF-8"}, False),
        ({"LC_ALL": "C.UTF-8", "LANG": "C"}, True),
        ({"LC_CTYPE": "C.UTF-8"}, True),
        ({"LC_CTYPE": "C.UTF-8", "LANG": "C"}, False),
    ],
)
def test_more_than_ascii(environment: Mapping[str, str], unicode: bool) -> None:
    assert screen_of(file(), environment).unicode == unicode
    assert not screen_of(file("ascii"), environment).unicode
