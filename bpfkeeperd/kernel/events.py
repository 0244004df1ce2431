"""Descriptors that tell when something may have changed: interfaces, mounts, directories."""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from bpfkeeperd._libbpf import lib
from bpfkeeperd.errors import KernelError
from bpfkeeperd.kernel.places import inside_netns

RTMGRP_LINK = 1  # include/uapi/linux/rtnetlink.h
IN_Q_OVERFLOW = 0x4000
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


class Directories:
    """Tells when a name that matters comes or goes in any of a changing set of directories.

    bpffs and cgroup file systems tell it like any other. It holds a descriptor until `close`.
    """

    __slots__ = ("_names", "fd")

    def __init__(self) -> None:
        self.fd: int = lib.keeper_watch_open()
        if self.fd < 0:
            raise KernelError("watch directories", -self.fd, WATCHES_REMEDY)
        self._names: dict[int, set[str]] = {}

    def follow(self, directories: Mapping[str, Collection[str]]) -> bool:
        """Watches these directories for these names or patterns of names, and no others; where
        there is none, the nearest that is there above it, for the next one on the way.

        A watch is of a directory, not of its path, and not every file system tells of its end: all
        are added again, which gives those that are the same their old number. Returns whether one
        is new: what happened in it before was not told.

        Raises:
            KernelError: no more can be watched (fs.inotify.max_user_watches).
        """
        names: dict[int, set[str]] = {}
        for directory, wanted in directories.items():
            path, waited_for = directory, wanted
            while (number := lib.keeper_watch_add(self.fd, os.fsencode(path))) < 0:
                if number not in (-errno.ENOENT, -errno.ENOTDIR) or path == "/":
                    raise KernelError(f"watch {path}", -number, WATCHES_REMEDY)
                path, _, name = path.rpartition("/")
                path, waited_for = path or "/", [name]
            names.setdefault(number, set()).update(waited_for)
        for number in self._names.keys() - names.keys():
            lib.keeper_watch_remove(self.fd, number)
        added = names.keys() - self._names.keys()
        self._names = names
        return bool(added)

    def drain(self) -> bool:
        """Reads all events; whether one matters."""
        matters = False
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return matters
            offset = 0
            while offset < len(data):
                number, mask, _, size = _INOTIFY_EVENT.unpack_from(data, offset)
                offset += _INOTIFY_EVENT.size + size
                name = os.fsdecode(data[offset - size : offset].rstrip(b"\0"))
                matters = matters or self._matters(number, mask, name)

    def _matters(self, number: int, mask: int, name: str) -> bool:
        if mask & IN_Q_OVERFLOW:
            return True
        names = self._names.get(number)
        if names is None:  # it is not watched any more
            return False
        if mask & IN_IGNORED:
            del self._names[number]
        return not name or any(fnmatchcase(name, wanted) for wanted in names)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)
