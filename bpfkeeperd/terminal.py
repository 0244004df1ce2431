"""The terminal: what it can show, and having the whole of it for a while."""

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from bpfkeeperd.columns import Screen

DEFAULT_COLUMNS, DEFAULT_LINES = 80, 24

_ENTER = "\x1b[?1049h\x1b[?7l\x1b[?25l\x1b[2J"
"""The alternate screen, no line wrap, no cursor, nothing on it."""
_LEAVE = "\x1b[?25h\x1b[?7h\x1b[?1049l"


def screen_of(stream: TextIO | None, environment: Mapping[str, str] = os.environ) -> Screen:
    """What is known of where text goes. Only a terminal has a width and colours."""
    unicode = _is_utf8(getattr(stream, "encoding", ""), environment)
    if stream is None or not stream.isatty():
        return Screen(None, False, unicode)
    columns, _ = size_of(stream.fileno())
    plain = environment.get("NO_COLOR") or environment.get("TERM", "") in ("", "dumb")
    return Screen(columns, not plain, unicode)


def _is_utf8(encoding: str | None, environment: Mapping[str, str]) -> bool:
    """By the locale, too: in that of C, Python writes UTF-8 and says so in LC_CTYPE."""
    locale = environment.get("LC_ALL") or environment.get("LC_CTYPE") or environment.get("LANG")
    told = environment.get("LANG")
    if locale == "C.UTF-8" and not environment.get("LC_ALL") and told in ("C", "POSIX"):
        locale = told
    if locale and "utf8" not in locale.lower().replace("-", ""):
        return False
    return (encoding or "").lower().replace("-", "") == "utf8"


def size_of(fd: int) -> tuple[int, int]:
    """Columns and lines; the usual ones of a terminal that does not tell."""
    try:
        columns, lines = os.get_terminal_size(fd)
    except OSError:
        return DEFAULT_COLUMNS, DEFAULT_LINES
    return columns or DEFAULT_COLUMNS, lines or DEFAULT_LINES


class FullScreen:
    """The whole terminal, painted anew each time; made by `full_screen`."""

    __slots__ = ("_input", "_output", "_wakeup")

    def __init__(self, output: int, keys: int | None, wakeup: int) -> None:
        self._output = output
        self._input = keys
        self._wakeup = wakeup

    def paint(self, lines: Sequence[str], height: int) -> None:
        """Shows these lines, as many as fit, on a terminal of that height; below them nothing.

        Each line is cleared before its text: behind a text as wide as the terminal, its last
        character would go. By places and not by line ends, so that nothing ever scrolls.
        """
        shown = [*lines[:height], *[""] * (height - len(lines))]
        _write(self._output, "".join(f"\x1b[{n};1H\x1b[K{line}" for n, line in enumerate(shown, 1)))

    def wait(self, seconds: float) -> str:
        """The keys that were pressed, as soon as there are any; empty after that time, or when the
        terminal may have another size."""
        watched = [self._wakeup] if self._input is None else [self._wakeup, self._input]
        ready, _, _ = select.select(watched, [], [], max(seconds, 0))
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        if self._input in ready and self._input is not None:
            keys = os.read(self._input, 64)
            if not keys:  # hung up
                self._input = None
            return keys.decode("latin-1")
        return ""


@contextmanager
def full_screen() -> Iterator[FullScreen]:
    """Takes the terminal on standard output, with the keys of standard input if that is one, too.

    However it ends, the terminal is as it was before. SIGTERM and SIGHUP raise SystemExit.
    """
    output = sys.stdout.fileno()
    keys = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None
    before = termios.tcgetattr(keys) if keys is not None else None
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGTSTP)
    handlers = {number: signal.getsignal(number) for number in numbers}

    def enter() -> None:
        if keys is not None:
            tty.setcbreak(keys)
        _write(output, _ENTER)

    def leave() -> None:
        with suppress(OSError):  # the terminal is gone
            _write(output, _LEAVE)
        if keys is not None and before is not None:
            with suppress(termios.error):
                termios.tcsetattr(keys, termios.TCSADRAIN, before)

    def pause(number: int, frame: FrameType | None) -> None:
        leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        enter()

    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGHUP, _end)
        signal.signal(signal.SIGWINCH, lambda number, frame: None)
        signal.signal(signal.SIGTSTP, pause)
        enter()
        yield FullScreen(output, keys, reader)
    finally:
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # not in the middle of this
        leave()
        signal.set_wakeup_fd(former)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
        signal.signal(signal.SIGINT, interrupt)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _write(fd: int, text: str) -> None:
    data = text.encode("utf-8", "replace")
    while data:
        data = data[os.write(fd, data) :]
