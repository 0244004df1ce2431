"""Who may change a pin root: one keeper at a time, for as long as it lives."""

import fcntl
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from bpfkeeperd.errors import BusyError, KernelError, PinRootError, errno_text


class RootLock:
    """An exclusive flock on the pin root; a context manager that gives it back.

    It is held on the directory that is there now: `refresh` moves it to the new one when the bpffs
    was mounted anew.
    """

    __slots__ = ("_fd", "root")

    def __init__(self, root: str) -> None:
        self.root = root
        self._fd = self._acquire()

    def _acquire(self) -> int:
        try:
            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            why = errno_text(error.errno or 0)
            raise PinRootError(f"cannot open pin root {self.root}: {why}") from None
        try:
            # `status` holds it for a moment
            if _flock(fd, self.root, fcntl.LOCK_EX, patience_seconds=0.2):
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
def reading(directory: str) -> Iterator[int | None]:
    """Waits until no reload is under way, and keeps one from starting; nothing is written.

    A directory that is not there, or not for this user, cannot be in use: there is nothing to wait
    for.
    """
    try:
        opened = _open(directory)
    except OSError:
        opened = None
    yield from _locked(directory, opened, fcntl.LOCK_SH, patience_seconds=30)


@contextmanager
def try_reading(directory: str) -> Iterator[bool]:
    """As `reading`, but waits for nobody: whether it could be had."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield True
        return
    try:
        yield _flock(fd, directory, fcntl.LOCK_SH, patience_seconds=0)
    finally:
        os.close(fd)


@contextmanager
def writing(directory: str) -> Iterator[int | None]:
    """Keeps readers out while a reload is under way; a reader that hangs is not waited for.

    What it gives is for `letting_look`.
    """
    try:
        opened = _open(directory)
    except OSError as error:
        raise KernelError(f"open {directory}", error.errno or 0) from None
    yield from _locked(directory, opened, fcntl.LOCK_EX, patience_seconds=1)


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
                _flock(lock, "", fcntl.LOCK_EX, patience_seconds=1)


def _open(directory: str) -> int | None:
    """None: it is not there."""
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _locked(
    directory: str, fd: int | None, operation: int, patience_seconds: float
) -> Generator[int | None, None, None]:
    if fd is None:
        yield None
        return
    try:
        _flock(fd, directory, operation, patience_seconds)
        yield fd
    finally:
        os.close(fd)


def _flock(fd: int, name: str, operation: int, patience_seconds: float) -> bool:
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
            raise KernelError(f"lock {name}", error.errno or 0) from None
        else:
            return True
