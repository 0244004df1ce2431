"""What is remembered, kept in step with what is."""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from bpfkeeperd import kernel
from bpfkeeperd.churn import (
    NOTHING,
    IdChange,
    Memory,
    OwnPins,
    at_start,
    before_start,
    follow,
    with_owners,
)
from bpfkeeperd.conflicts import conflict_ids
from bpfkeeperd.desired import Desired
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.layout import Layout, escape, unescape
from bpfkeeperd.marks import marked, remove_marks
from bpfkeeperd.observed import Observed
from bpfkeeperd.statefile import lock_state, read_state, state_path, write_state
from bpfkeeperd.steps import OnStep, Step


class Ledger:
    """The memory of one pin root and its file, which nobody else writes meanwhile.

    Raises:
        BusyError: somebody else writes it.
    """

    def __init__(self, directory: str, layout: Layout, on_step: OnStep) -> None:
        self._path = state_path(directory, layout.root)
        self._layout = layout
        self._on_step = on_step
        self._lock = lock_state(self._path)
        self.memory, self.note = read_state(self._path)
        """``note``: why the file could not be read; empty if it could."""
        self._written = self.memory
        self._started = False
        self._unsaid: list[IdChange] = []

    def pinned_here(self, name: str, map_id: int) -> bool:
        """Whether a map is under a name by the keeper's doing, or with its knowledge.

        Raises:
            KernelError: a mark cannot be read.
        """
        if self.memory.last_ids(kernel.boot_id()).get(name) == map_id:
            return True
        return map_id in marked(self._layout).get(escape(name), {})

    def note_before(self, desired: Desired, observed: Observed) -> None:
        """Counts what happened since the last look, before anything is done about it.

        Raises:
            KernelError: a mark cannot be read.
        """
        own = marked(self._layout)
        self.memory, changes = followed(self.memory, desired, observed, own)
        self._unsaid += changes if self._started else map(before_start, changes)
        if changes or own:
            self.write()

    def follow(
        self, desired: Desired, observed: Observed, renamed: Mapping[str, str] = NOTHING
    ) -> None:
        """Counts what was done, and what happened.

        Raises:
            KernelError: a mark cannot be read.
        """
        own = marked(self._layout)
        self.memory, changes = followed(self.memory, desired, observed, own, renamed)
        self._unsaid += changes if self._started else map(at_start, changes)
        self._started = True

    def note_pinned(self) -> None:
        """Counts what a keeper that was killed could not, where no manifest is to be read.

        Raises:
            KernelError: a pin cannot be read.
        """
        own = marked(self._layout)
        names = {*self.memory.maps, *map(unescape, own)} if own else set[str]()
        pinned = {name: map_id for name in names if (map_id := self._pinned_id(name))}
        if own:
            self.memory, changes = follow(
                self.memory,
                pinned,
                boot_id=kernel.boot_id(),
                at=time.time(),
                pinned_at=_pinned_at(self.memory, pinned, self._layout),
                own=_by_name(own, pinned),
            )
            self._unsaid += map(before_start, changes)

    def _pinned_id(self, name: str) -> int:
        found = kernel.pinned_map(self._layout.map(name))
        if found is None:
            return 0
        os.close(found[0])
        return found[1].id

    def write(self) -> str:
        """Has the file as the memory is; a note when that failed, and then the next call tries
        again. Until it is written the marks stay."""
        if self.memory != self._written:
            self._on_step(Step.WRITE_STATE, self._path)
            try:
                write_state(self._path, self.memory)
                self._written = self.memory
            except KeeperError as error:  # the maps are kept all the same
                return f"{error}: ID changes may be counted twice or not at all"
        remove_marks(self._layout)
        return ""

    def tell(self) -> tuple[IdChange, ...]:
        """The changes since the last call."""
        changes = tuple(self._unsaid)
        self._unsaid.clear()
        return changes

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def followed(
    memory: Memory,
    desired: Desired,
    observed: Observed,
    own: OwnPins,
    renamed: Mapping[str, str] = NOTHING,
) -> tuple[Memory, tuple[IdChange, ...]]:
    """The memory as it is with what is observed now, and which IDs changed. ``own`` has escaped
    names."""
    pinned = {
        found.source or name: found.pinned.id
        for name, found in observed.maps.items()
        if found.pinned and not found.stored_id  # until that is decided, nothing changed
    }
    memory = replace(memory, conflicts=conflict_ids(observed))
    layout = Layout(desired.manifest.pin_root)
    formers = {name: wanted.former for name, wanted in desired.maps.items() if wanted.former}
    memory, changes = follow(
        memory,
        pinned,
        boot_id=kernel.boot_id(),
        at=time.time(),
        pinned_at=_pinned_at(memory, pinned, layout),
        own=_by_name(own, pinned) if own else own,
        formers=formers,
        renamed=renamed,
    )
    owners = {
        found.source or name: found.rights.uid if found.rights else 0
        for name, found in observed.maps.items()
        if not found.fault
    }
    return with_owners(memory, owners), changes


def _pinned_at(memory: Memory, pinned: Mapping[str, int], layout: Layout) -> dict[str, float]:
    """Unix times since when the names that lead to another map now are there. A later chmod or
    chown of a pin counts, too."""
    times = {}
    for name, map_id in pinned.items():
        record = memory.maps.get(name)
        if record is not None and record.id != map_id:
            with suppress(OSError):  # it went a moment ago
                times[name] = os.lstat(layout.map(name)).st_ctime
    return times


def _by_name(own: OwnPins, names: Iterable[str]) -> OwnPins:
    return {name: found for name in names if (found := own.get(escape(name)))}


def adopted_links(
    memory: Memory, adopted: Mapping[tuple[str, str, str], int], observed: Observed
) -> Memory:
    """Which attachments are links that somebody else made, by the links that are there now."""
    known = {**memory.adopted, **{"/".join(key): link for key, link in adopted.items()}}
    there = {"/".join(key): link.info.id for key, link in observed.links.items()}
    links = {key: link_id for key, link_id in known.items() if there.get(key) == link_id}
    return replace(memory, adopted=links)
