"""The service manager's file-descriptor store: what is kept in it for the next start, by name.

A descriptor there keeps a map alive, with its contents, while no daemon runs and no pin is left.
"""

import base64
import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum

from bpfkeeperd import kernel
from bpfkeeperd.errors import KernelError
from bpfkeeperd.kernel import PinKind
from bpfkeeperd.notify import Notifier

NAMES_MAX = 7000
"""The service manager passes all names in one environment variable, and the kernel starts no
process with one of more than 128 KiB (MAX_ARG_STRLEN): more than 7,700 names of 16 bytes with
their separators would keep the service from starting at all."""
SYNC_SECONDS = 0.5
"""How long the loop waits at a time for a service manager that takes message after message, but
slowly: systemd compares each descriptor with all that it has, 5,000 take it 15 s."""

Kept = Mapping[str, tuple[int, int]]
"""Name in the store to the ID of the map or link, and a descriptor of it."""


class StoredKind(StrEnum):
    """What a name in the store begins with."""

    MAP = "m"
    LINK = "l"


def store_name(kind: StoredKind, pin_root: str, *parts: str) -> str:
    """FDNAME of a map or link: a hash, for all names together must be short (see `NAMES_MAX`).

    Whoever knows what is wanted, finds it by its name; what nobody wants needs none.
    """
    text = "\0".join((pin_root, *parts)).encode("utf-8", "surrogateescape")
    return kind + base64.urlsafe_b64encode(hashlib.sha256(text).digest())[:15].decode("ascii")


def object_id(name: str, fd: int) -> int:
    """The ID of the map or link that a descriptor is of; 0 for what its name does not stand for."""
    try:
        if name.startswith(StoredKind.MAP) and kernel.kind_of(fd) is PinKind.MAP:
            return kernel.map_info(fd).id
        if name.startswith(StoredKind.LINK) and kernel.kind_of(fd) is PinKind.LINK:
            return kernel.link_info(fd).id
    except KernelError:
        pass
    return 0


class FdStore:
    """Has the store as it is wanted.

    Args:
        notifier: Tells the service manager.
        passed: What was in the store when this process was started.
        room: What the store takes, where the service manager says so (``FDSTORE``).
    """

    __slots__ = ("_known", "_notifier", "_room")

    def __init__(
        self, notifier: Notifier, passed: Mapping[str, Sequence[int]], room: int | None = None
    ) -> None:
        self._notifier = notifier
        self._room = NAMES_MAX if room is None else min(NAMES_MAX, room)
        self._known = {
            name: object_id(name, fds[0]) if len(fds) == 1 else 0 for name, fds in passed.items()
        }

    def left_out(self, wanted: Kept) -> int:
        """How many there is no room for."""
        return max(0, len(wanted) - self._room) if self._notifier.is_open else 0

    def follow(self, wanted: Kept, untouched: Collection[str] = ()) -> bool:
        """Stores what is wanted and not there, removes what is there and not wanted, and says
        nothing when nothing changed. False: not all could be said, call again."""
        if not self._notifier.is_open:
            return True
        deadline = time.monotonic() + SYNC_SECONDS
        gone = self._known.keys() - wanted.keys() - set(untouched)
        new = wanted.keys() - self._known.keys()
        if len(self._known) + len(new) <= self._room:
            # A map that got another name is there under one of both all the while.
            return self._put(wanted, deadline) and self._drop(gone, deadline)
        return self._drop(gone, deadline) and self._put(wanted, deadline)

    def _drop(self, names: Collection[str], deadline: float) -> bool:
        return all(time.monotonic() <= deadline and self._remove(name) for name in names)

    def _put(self, wanted: Kept, deadline: float) -> bool:
        for name, (number, fd) in wanted.items():
            known = self._known.get(name)
            if known == number or (known is None and len(self._known) >= self._room):
                continue
            if time.monotonic() > deadline or (known is not None and not self._remove(name)):
                return False
            # Without FDPOLL=0 it would be dropped at once: a map's descriptor answers EPOLLERR.
            if not self._notifier.send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fd):
                return False
            self._known[name] = number
        return True

    def _remove(self, name: str) -> bool:
        """Two of one name would both be passed on: the former goes first."""
        removed = self._notifier.send(f"FDSTOREREMOVE=1\nFDNAME={name}")
        if removed:
            del self._known[name]
        return removed
