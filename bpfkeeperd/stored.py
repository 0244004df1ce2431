"""What the service manager kept since a former start, given to whoever holds what is kept."""

import os
from collections.abc import Iterable, Sequence

from bpfkeeperd import kernel
from bpfkeeperd.churn import Memory
from bpfkeeperd.desired import Desired
from bpfkeeperd.errors import KernelError
from bpfkeeperd.fdstore import Kept, StoredKind, object_id, store_name
from bpfkeeperd.held import Held
from bpfkeeperd.hooks import STORED_LINKS
from bpfkeeperd.kernel import PinKind
from bpfkeeperd.layout import Layout


class Stored:
    """Descriptors by their names in the store, until it is known what they are for."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left: dict[str, list[int]] = {}

    @property
    def names(self) -> set[str]:
        """Of what nobody has taken yet."""
        return set(self._left)

    def put(self, name: str, fds: Sequence[int]) -> None:
        """Takes over descriptors of one name."""
        self._left.setdefault(name, []).extend(fds)

    def give(self, held: Held, layout: Layout, desired: Desired, memory: Memory) -> list[str]:
        """Gives what is known by its name to ``held``, and closes the rest; a note for each thing
        that should not have been there.

        As long as an object cannot be read, nobody knows what is its own: the rest stays.
        """
        if not self._left:
            return []
        notes: list[str] = []
        for name in {*_map_names(desired), *memory.maps}:
            fd = self._take(StoredKind.MAP, layout.root, [name], notes)
            if fd is not None:
                held.take_map(name, fd)
        for key in {*desired.link_keys(), *(key for *_, key in desired.unread_attachments())}:
            fd = self._take(StoredKind.LINK, layout.root, key, notes)
            if fd is not None:
                held.take_link(key, fd)
        if not desired.faults:
            for name, fds in self._left.items():
                notes += [_stray(name, fd) for fd in fds]
            self.close()
        return notes

    def _take(
        self, kind: StoredKind, root: str, parts: Iterable[str], notes: list[str]
    ) -> int | None:
        name = store_name(kind, root, *parts)
        found: int | None = None
        for fd in self._left.pop(name, ()):
            if object_id(name, fd) and found is None:
                found = fd
            else:
                notes.append(_stray(name, fd))
                os.close(fd)
        return found

    def close(self) -> None:
        for fds in self._left.values():
            for fd in fds:
                os.close(fd)
        self._left.clear()


def kept(held: Held, layout: Layout, memory: Memory) -> Kept:
    """What belongs into the store: every map, and links of the kinds that may be there."""
    found = {
        store_name(StoredKind.MAP, layout.root, name): there for name, there in held.maps.items()
    }
    for key, (link_id, fd, link_type) in held.links.items():
        ours = memory.adopted.get("/".join(key)) != link_id
        if ours and link_type in STORED_LINKS:
            found[store_name(StoredKind.LINK, layout.root, *key)] = (link_id, fd)
    return found


def _map_names(desired: Desired) -> Iterable[str]:
    yield from desired.maps
    yield from desired.unread_maps()
    yield from (wanted.former for wanted in desired.maps.values() if wanted.former)


def _stray(name: str, fd: int) -> str:
    what = "something that is no map"
    try:
        match kernel.kind_of(fd):
            case PinKind.MAP:
                info = kernel.map_info(fd)
                what = f"map ID {info.id} ({info.name}), which the manifest does not name"
            case PinKind.PROGRAM:
                what = "a program"
            case PinKind.LINK:
                what = f"link ID {kernel.link_info(fd).id}, which the manifest does not want"
            case PinKind.OTHER | PinKind.DIRECTORY:
                pass
    except KernelError as error:
        what = f"something that cannot be read ({error})"
    return f"the service manager kept {what}, as {name!r}: it is let go of"
