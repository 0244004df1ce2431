"""The maps of the machine that no manifest of this daemon names, and where they are pinned."""

import os
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from threading import Lock
from types import TracebackType
from typing import Self

from bpfkeeperd import iterators, kernel
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.moment import OtherMap
from bpfkeeperd.state import Status

OBJECT_NAME = "map_list.bpf.o"

DEPTH = 8
"""Of directories below a bpffs that are looked into."""

LOOK_SECONDS = 5.0
"""From one look for pins to the next, at least."""

_PROGRAM = "list_maps"
_RECORD = struct.Struct("=III16s")
"""``struct record`` of the program."""


def map_pins(own_directory: str) -> dict[int, tuple[str, ...]]:
    """Map ID to the paths of its pins, in every bpffs that this process sees; without those in the
    keeper's own directory, which come and go.

    It opens each pin for a moment, some 3 us.
    """
    found: dict[int, set[str]] = {}
    for mount in kernel.bpffs_mounts():
        try:
            pins = kernel.scan(mount, DEPTH, kernel.PinKind.MAP)
        except KeeperError:  # unmounted meanwhile
            continue
        for pin in pins:
            path = "/".join((mount, *pin.path))
            is_own = path.startswith(f"{own_directory}/")
            if pin.kind == kernel.PinKind.MAP and not pin.error and not is_own:
                found.setdefault(pin.id, set()).add(path)  # two mounts may be one in the other
    return {map_id: tuple(sorted(paths)) for map_id, paths in found.items()}


def with_other_pins(status: Status, own_directory: str) -> Status:
    """Each map with the paths at which it is pinned besides its own."""
    pins = map_pins(own_directory)
    maps = tuple(
        replace(found, other_pins=tuple(path for path in paths if path != found.path))
        if (paths := pins.get(found.id or 0, ())) != (found.path,)
        else found
        for found in status.maps
    )
    return replace(status, maps=maps)


def _shown(path: str) -> str:
    """As a label has it. A byte that is no UTF-8 looks like a backslash and digits then: paths that
    look the same have to be the same, or two series would have the same labels."""
    return path.encode("utf-8", "backslashreplace").decode()


class OtherMaps:
    """Lists them; a context manager that holds one descriptor.

    It may be asked while another thread closes it.

    Raises:
        KeeperError: this kernel does not list maps this way.
    """

    def __init__(self, own_directory: str) -> None:
        self._own_directory = own_directory
        self._link_fd = iterators.load(iterators.OBJECTS / OBJECT_NAME, _PROGRAM)
        self._lock = Lock()
        self._paths: Mapping[int, str] = {}
        self._next_look = 0.0

    def look_for_pins(self, now: float) -> None:
        """Takes the paths of pins as they are ``now`` (time.monotonic()), unless it just did."""
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        try:
            pins = map_pins(self._own_directory)
        except OSError:  # no descriptor left: the next look will tell
            return
        self._paths = {map_id: _shown(paths[0]) for map_id, paths in pins.items()}

    def found(self, kept: Collection[int]) -> Iterator[OtherMap]:
        """All maps but the kept ones, with their pins as of the last look for them; none when it is
        closed."""
        paths, records = self._paths, b""
        with self._lock:
            if self._link_fd >= 0:
                records = iterators.read(self._link_fd)
        for map_id, kind, max_entries, name in _RECORD.iter_unpack(records):
            if map_id not in kept:
                text = name.partition(b"\0")[0].decode("utf-8", "replace")
                yield OtherMap(map_id, text, kind, max_entries, paths.get(map_id, ""))

    def close(self) -> None:
        """Lets go of the program; a second call does nothing."""
        with self._lock:
            fd, self._link_fd = self._link_fd, -1
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
