"""Descriptors that tell when something may have changed: interfaces, mounts, directories."""

import contextlib
import errno
import os
import socket
import struct

from bpfkeeperd._libbpf import lib
from bpfkeeperd.errors import KernelError
from bpfkeeperd.kernel.places import inside_netns

RTMGRP_LINK = 1  # include/uapi/linux/rtnetlink.h
IN_IGNORED = 0x8000  # include/uapi/linux/inotify.h: the watch is gone
WATCHES_REMEDY = (
    "changes there are found by the timer only; sysctl fs.inotify.max_user_watches may be too low"
)
_INOTIFY_EVENT = struct.Struct("iIII")


def interface_events(netns: str | None) -> socket.socket:
    """A socket that is readable when an interface comes, goes or changes in a network namespace.

    It belongs to that namespace, which does not go away before the socket is closed.

    Raises:
        KernelError: there is no such namespace, or it cannot be entered.
    """
    with inside_netns(netns):
        try:
            found = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            found.bind((0, RTMGRP_LINK))
        except OSError as error:
            raise KernelError("listen for interfaces", error.errno or 0) from None
    return found


def drain(found: socket.socket) -> bool:
    """Reads all that a socket has; False when that is nothing. What was lost is something, too."""
    there = False
    while True:
        try:
            found.recv(1 << 16)
        except BlockingIOError:
            return there
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # more came than it could hold
                raise
        there = True


def mount_events() -> int:
    """A descriptor that polls as POLLPRI when something was mounted or unmounted; each time once,
    without being read."""
    return os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)


def _open_watch() -> int:
    fd: int = lib.keeper_watch_open()
    if fd < 0:
        raise KernelError("watch directories", -fd, WATCHES_REMEDY)
    return fd


class Directories:
    """Tells when a name comes or goes in any of a changing set of directories.

    bpffs and cgroup file systems tell it like any other. It holds a descriptor until `close`.
    """

    __slots__ = ("_by_number", "_numbers", "fd")

    def __init__(self) -> None:
        self.fd = _open_watch()
        self._numbers: dict[str, int] = {}
        self._by_number: dict[int, str] = {}

    def follow(self, directories: set[str]) -> bool:
        """Watches these, or where there is none the nearest that is there above it; and no others.

        Returns whether one is watched anew: what happened in it before was not told.

        Raises:
            KernelError: no more can be watched (fs.inotify.max_user_watches).
        """
        before = len(self._numbers)
        watched = {self._watched(directory) for directory in directories}
        added = len(self._numbers) > before
        for path in self._numbers.keys() - watched:
            number = self._numbers.pop(path)
            del self._by_number[number]
            lib.keeper_watch_remove(self.fd, number)
        return added

    def _watched(self, directory: str) -> str:
        """The directory that stands for another in the watches, added if need be."""
        while directory not in self._numbers:
            number = lib.keeper_watch_add(self.fd, os.fsencode(directory))
            if number >= 0:
                # Another path of the same directory has the same number.
                if number in self._by_number:
                    return self._by_number[number]
                self._numbers[directory] = number
                self._by_number[number] = directory
            elif number in (-errno.ENOENT, -errno.ENOTDIR) and directory != "/":
                directory = os.path.dirname(directory)
            else:
                raise KernelError(f"watch {directory}", -number, WATCHES_REMEDY)
        return directory

    def drain(self) -> bool:
        """Reads all events; False when there are none."""
        there = False
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return there
            offset = 0
            while offset < len(data):
                number, mask, _, size = _INOTIFY_EVENT.unpack_from(data, offset)
                offset += _INOTIFY_EVENT.size + size
                if not mask & IN_IGNORED:
                    there = True
                elif number in self._by_number:  # else `follow` took it away
                    del self._numbers[self._by_number.pop(number)]
                    there = True

    def reset(self) -> None:
        """Forgets all watches: after a mount, the same path may be another directory."""
        self.close()
        self._numbers.clear()
        self._by_number.clear()
        self.fd = _open_watch()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)
