"""Remembers how to undo what was done."""

import os
from collections.abc import Callable

from bpfkeeperd.errors import KeeperError


class Transaction:
    """One change to the kernel and bpffs, until it is settled or undone."""

    __slots__ = ("_descriptors", "_settle", "_undo")

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._settle: list[Callable[[], None]] = []
        self._descriptors: list[int] = []

    def on_undo(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def on_success(self, settle: Callable[[], None]) -> None:
        """For what must wait until nothing can fail any more, and cannot fail itself."""
        self._settle.append(settle)

    def close_later(self, fd: int) -> int:
        """Closes a descriptor when the transaction is over, undone or not."""
        self._descriptors.append(fd)
        return fd

    def settle(self) -> None:
        for step in self._settle:
            step()

    def undo(self) -> list[str]:
        """Undoes everything, last first; returns what could not be undone."""
        failed = []
        for step in reversed(self._undo):
            try:
                step()
            except KeeperError as error:
                failed.append(str(error))
            except OSError as error:
                failed.append(f"cannot change {error.filename}: {error.strerror}")
        return failed

    def close(self) -> None:
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()
