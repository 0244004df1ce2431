"""Who may change a pin root: one keeper at a time, for as long as it lives.

What is locked is what was opened, and judged, before: see `bpfkeeperd.pinroot`.
"""

import fcntl
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from bpfkeeperd.errors import BusyError, KernelError, PinRootError, errno_text


class RootLock:
    """An exclusive flock on the pin root; a context manager that gives it back.

    It is held on the directory that is there now: `refresh` moves it to the new one when the bpffs
    was mounted anew. ``open_root`` opens what is there.
    """

    __slots__ = ("_fd", "_open_root", "root")

    def __init__(self, root: str, open_root: Callable[[str], int]) -> None:
        self.root = root
        self._open_root = open_root
        self._fd = self._acquire()

    def _acquire(self) -> int:
        fd = self._open_root(self.root)
        try:
            # `status` holds it for a moment
            if _flock(fd, fcntl.LOCK_EX, patience_seconds=0.2):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        raise BusyError(
            f"another keeper holds the pin root {self.root}: use `bpfkeeperd reload`, or stop"
            " it first"
        )

    def refresh(self) -> None:
        """Holds the directory that is at the pin root now."""
        try:
            same = os.path.samestat(os.stat(self.root), os.fstat(self._fd))
        except OSError as error:
            why = errno_text(error.errno or 0)
            raise PinRootError(f"cannot look at pin root {self.root}: {why}") from None
        if not same:
            fd = self._acquire()
            os.close(self._fd)
            self._fd = fd

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def is_held(root: str) -> bool:
    """Whether a keeper holds a pin root now."""
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def reading(directory: int | None) -> Iterator[int | None]:
    """Waits until no reload is under way, and keeps one from starting; nothing is written.

    The descriptor of the directory is closed afterwards. None: it is not there, or not for this
    user, so that it cannot be in use, and there is nothing to wait for.
    """
    yield from _locked(directory, fcntl.LOCK_SH, patience_seconds=30)


@contextmanager
def try_reading(directory: int | None) -> Iterator[bool]:
    """As `reading`, but waits for nobody: whether it could be had."""
    if directory is None:
        yield True
        return
    try:
        yield _flock(directory, fcntl.LOCK_SH, patience_seconds=0)
    finally:
        os.close(directory)


@contextmanager
def writing(directory: int | None) -> Iterator[int | None]:
    """As `reading`, but keeps readers out; one that hangs is not waited for.

    What it gives is for `letting_look`.
    """
    yield from _locked(directory, fcntl.LOCK_EX, patience_seconds=1)


@contextmanager
def letting_look(lock: int | None) -> Iterator[None]:
    """Lets readers in while a reload does nothing but wait."""
    if lock is not None:
        with suppress(OSError):  # then they wait
            fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if lock is not None:
            with suppress(KernelError):  # a reader that hangs is not waited for either
                _flock(lock, fcntl.LOCK_EX, patience_seconds=1)


def _locked(
    directory: int | None, operation: int, patience_seconds: float
) -> Generator[int | None, None, None]:
    if directory is None:
        yield None
        return
    try:
        _flock(directory, operation, patience_seconds)
        yield directory
    finally:
        os.close(directory)


def _flock(fd: int, operation: int, patience_seconds: float) -> bool:
    """Whether the lock could be had in time.

    Raises:
        KernelError: for another reason than that somebody has it.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        except OSError as error:
            path = os.readlink(f"/proc/self/fd/{fd}")
            raise KernelError(f"lock {path}", error.errno or 0) from None
        else:
            return True
