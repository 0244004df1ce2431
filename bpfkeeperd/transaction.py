"""Remembers how to undo what was done: of one change, and of a whole reload."""

import os
from collections.abc import Callable

from bpfkeeperd.errors import KeeperError, error_text


class Transaction:
    """What was done to the kernel and bpffs, until it is settled or undone."""

    __slots__ = ("_descriptors", "_settle", "_undo", "_wait")

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._settle: list[Callable[[], None]] = []
        self._wait: list[Callable[[], None]] = []
        self._descriptors: list[int] = []

    def on_undo(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def on_success(self, settle: Callable[[], None]) -> None:
        """For what must wait until nothing can be undone any more. What fails of it stays."""
        self._settle.append(settle)

    def before_waiting(self, step: Callable[[], None]) -> None:
        """For what must not last until programs have shown their health: done when all changes are
        made, and it registers its own way back. Without a trial `on_success` comes at once."""
        self._wait.append(step)

    def wait(self) -> None:
        """All changes are made, and a verdict on them is to be waited for."""
        while self._wait:
            self._wait.pop(0)()

    def close_later(self, fd: int) -> int:
        """Closes a descriptor when the transaction is over, undone or not."""
        self._descriptors.append(fd)
        return fd

    def absorb(self, later: "Transaction") -> None:
        """Takes over what was done after it: both are settled, or undone, together."""
        for mine, theirs in (
            (self._undo, later._undo),
            (self._settle, later._settle),
            (self._wait, later._wait),
        ):
            mine += theirs
            theirs.clear()
        self._descriptors += later._descriptors
        later._descriptors.clear()

    def settle(self) -> list[str]:
        """Does what had to wait; from now on there is nothing to undo. Returns what could not be
        done, which keeps nothing else from it."""
        self._undo.clear()
        failed = []
        while self._settle:
            failed += _tried(self._settle.pop(0))
        return failed

    def undo(self) -> list[str]:
        """Undoes everything, last first; returns what could not be undone."""
        failed = []
        self._settle.clear()
        self._wait.clear()
        while self._undo:
            failed += _tried(self._undo.pop())
        return failed

    def close(self) -> None:
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()


def _tried(step: Callable[[], None]) -> list[str]:
    """What is to be told of a step that failed."""
    try:
        step()
    except (KeeperError, OSError) as error:
        return [error_text(error)]
    return []
