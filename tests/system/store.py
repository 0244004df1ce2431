"""Stands in for the file-descriptor store of a service manager, by the rules of systemd's own."""

import os
import select
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from bpfkeeperd import kernel


class Store:
    """Keeps descriptors by name over the lives of a daemon, until it is closed.

    As systemd: several can have one name; what is not stored with FDPOLL=0 is watched, and dropped
    when there is an error or a hang-up to be seen on it.
    """

    def __init__(self, room: int = 1 << 20) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._kept: list[tuple[str, int]] = []
        self.refused = 0

    def obey(self, message: Mapping[str, str], fds: Sequence[int]) -> None:
        """Does what a notification says; the descriptors are the store's from now on."""
        name = message.get("FDNAME", "stored")
        with self._lock:
            if message.get("FDSTOREREMOVE") == "1":
                assert "FDNAME" in message
                self._drop(name)
            elif message.get("FDSTORE") == "1":
                assert len(name) <= 255 and name.isascii() and name.isprintable()
                assert ":" not in name
                for fd in fds:
                    self._put(name, fd, watched=message.get("FDPOLL") != "0")
                return
        for fd in fds:
            os.close(fd)

    def _put(self, name: str, fd: int, *, watched: bool) -> None:
        if len(self._kept) >= self._room or (watched and _has_failed(fd)):
            self.refused += 1
            os.close(fd)
        else:
            self._kept.append((name, fd))

    def _drop(self, name: str) -> None:
        for _, fd in [each for each in self._kept if each[0] == name]:
            os.close(fd)
        self._kept = [each for each in self._kept if each[0] != name]

    def put(self, name: str, fd: int) -> None:
        """Puts something in, which is the store's from now on."""
        with self._lock:
            self._kept.append((name, fd))

    @property
    def passed(self) -> list[tuple[str, int]]:
        """What the next start gets."""
        with self._lock:
            return list(self._kept)

    @property
    def names(self) -> list[str]:
        return sorted(name for name, _ in self.passed)

    def map_ids(self) -> dict[str, list[int]]:
        """IDs of the maps, by their names in the kernel."""
        found: dict[str, list[int]] = {}
        for _, fd in self.passed:
            if kernel.kind_of(fd) is kernel.PinKind.MAP:
                info = kernel.map_info(fd)
                found.setdefault(info.name, []).append(info.id)
        return found

    def link_ids(self) -> list[int]:
        return sorted(
            kernel.link_info(fd).id
            for _, fd in self.passed
            if kernel.kind_of(fd) is kernel.PinKind.LINK
        )

    def close(self) -> None:
        with self._lock:
            for _, fd in self._kept:
                with suppress(OSError):
                    os.close(fd)
            self._kept = []


def _has_failed(fd: int) -> bool:
    poll = select.epoll()
    with poll:
        try:
            poll.register(fd, 0)
        except PermissionError:  # a file that is always ready
            return False
        return bool(poll.poll(0))


@contextmanager
def store_of(room: int = 1 << 20) -> Iterator[Store]:
    store = Store(room)
    try:
        yield store
    finally:
        store.close()
