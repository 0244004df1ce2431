"""Waits for something to happen at a path, above all for another map under a pin's name.

bpffs tells inotify of every pin made (BPF_OBJ_PIN, link), renamed and removed in a directory. What
it cannot tell, because nothing happens in the directory itself, is that another bpffs is mounted
at the path, or the one that is there unmounted while somebody keeps it: /proc/self/mountinfo does.
"""

import errno
import math
import os
import select
import struct
import time
from types import TracebackType
from typing import Self

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KernelError

# Of <sys/inotify.h>. IN_UNMOUNT, IN_IGNORED and IN_Q_OVERFLOW come without being asked for.
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _ONLYDIR = 0x400, 0x800, 0x1000000
_MASK = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK and IN_CLOEXEC are these
_READ_BYTES = 1 << 16
_EVENT = struct.Struct("=iIII")  # struct inotify_event, before its name

LOOK_SECONDS = 1.0
"""How often to look where a directory cannot be watched."""


class PathWatch:
    """Wakes up when something may have changed at a path; a context manager.

    Look at the path after `arm` and then `wait`: what happens after `arm` is not missed. It may
    wake up for nothing. Directories above the path need not be there yet.
    """

    __slots__ = ("_blind", "_directories", "_fd", "_mounts", "_names", "_poll", "_stood", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        parts = path.split("/")
        depths = range(1, len(parts))
        self._directories = [("/".join(parts[:depth]) or "/", parts[depth]) for depth in depths]
        self._names: dict[int, str] = {}  # watch: what in its directory leads to the path
        self._stood = self._stand()
        self._blind = False
        self._poll = select.poll()
        self._fd: int = lib.inotify_init1(_FLAGS)
        if self._fd >= 0:
            self._poll.register(self._fd, select.POLLIN)
        try:
            self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._close_inotify()
            raise KernelError("open /proc/self/mountinfo", error.errno or 0) from None
        self._poll.register(self._mounts, select.POLLPRI)

    def arm(self) -> None:
        """Watches every directory above the path that is there now, from the top: one that is made
        meanwhile is an event of the one above it."""
        self._blind = False
        self._stood = self._stand()
        for directory, name in self._directories:
            watch = lib.inotify_add_watch(self._fd, os.fsencode(directory), _MASK)
            if watch >= 0:
                self._names[watch] = name
            elif ffi.errno in (errno.ENOENT, errno.ENOTDIR):
                return
            else:  # no right to read it, or too many watches or instances of this user's
                self._blind = True

    def wait(self, timeout_seconds: float | None) -> bool:
        """Until something happened, or the time is over (False). None: no limit.

        What cannot be watched has to be looked at: then it is True after `LOOK_SECONDS`.
        """
        limit = math.inf if timeout_seconds is None else timeout_seconds
        end = time.monotonic() + (min(limit, LOOK_SECONDS) if self._blind else limit)
        while True:
            left = end - time.monotonic()
            ready = self._poll.poll(None if left == math.inf else max(0.0, left) * 1000)
            if not ready:
                return self._blind and limit > LOOK_SECONDS
            if any(self._tells(fd) for fd, _ in ready):
                return True

    def _tells(self, fd: int) -> bool:
        """Whether what there is to read is about the path."""
        if fd == self._mounts:
            return self._stand() != self._stood
        data, place, told = os.read(self._fd, _READ_BYTES), 0, False
        while place < len(data):
            watch, _, _, length = _EVENT.unpack_from(data, place)
            place += _EVENT.size + length
            name = os.fsdecode(data[place - length : place].rstrip(b"\0"))
            # Without a name it is about the directory itself, or events were lost.
            told = told or not name or name == self._names.get(watch, name)
        return told

    def _stand(self) -> list[tuple[int, int] | None]:
        """Device and inode of each directory above the path."""
        found: list[tuple[int, int] | None] = []
        for directory, _ in self._directories:
            try:
                status = os.stat(directory)
                found.append((status.st_dev, status.st_ino))
            except OSError:
                found.append(None)
        return found

    def _close_inotify(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def close(self) -> None:
        self._close_inotify()
        os.close(self._mounts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
