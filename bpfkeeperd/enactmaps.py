"""What a change does to maps: filled, carried over, pinned, exchanged, renamed, written."""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bpfkeeperd import kernel
from bpfkeeperd.actions import (
    CreateMap,
    Making,
    RecreateMap,
    RenameMap,
    RenewMap,
    SetRights,
    WriteEntries,
)
from bpfkeeperd.after import After
from bpfkeeperd.byid import map_by_id, program_by_id
from bpfkeeperd.directories import (
    check_usable,
    exchange,
    link,
    make_parents,
    remove_empty,
    rename,
    rights_of,
    set_rights,
    unlink,
)
from bpfkeeperd.entries import Content, InterfaceRef
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.fill import Resolver, fill
from bpfkeeperd.globaldata import carried_over, variables
from bpfkeeperd.held import Held
from bpfkeeperd.inner import slots
from bpfkeeperd.layout import Layout, escape
from bpfkeeperd.load import Loaded
from bpfkeeperd.maptypes import BY_NUMBER, CPUMAP, DEVMAP, DEVMAP_HASH, PROG_ARRAY, type_name
from bpfkeeperd.marks import mark, pin_marked
from bpfkeeperd.observed import Observed, ObservedMap
from bpfkeeperd.state import MapIdChange, MapInfo
from bpfkeeperd.steps import OnStep, Step
from bpfkeeperd.transaction import Transaction

_REASONS = {
    CreateMap: MapIdChange.LOST,
    RecreateMap: MapIdChange.RECREATED,
    RenewMap: MapIdChange.RENEWED,
}


ById = Callable[[int, bool], int | None]
"""The ID of a program, or of a map (True), to a descriptor; None when it is gone."""


@dataclass(slots=True)
class MapEnactor:
    """What every step on maps needs."""

    layout: Layout
    observed: Observed
    held: Held
    on_step: OnStep
    after: After

    def make_ready(self, transaction: Transaction, action: Making, loaded: Loaded) -> None:
        """Has a new map hold what it should before anybody can see it."""
        wanted = action.map
        fd = loaded.new_maps[wanted.name]
        if wanted.contents:
            self.on_step(Step.FILL_MAP, wanted.name)
            fill(fd, wanted.spec, wanted.contents, self._resolver(transaction, loaded))
        if isinstance(action, RenewMap) and wanted.spec.type == PROG_ARRAY:
            self._carry_slots(transaction, action, fd)

    def _carry_slots(self, transaction: Transaction, action: RenewMap, fd: int) -> None:
        """Programs that others put into a program array stay in it."""
        old = self.kept_fd(transaction, action.map.name)
        own = {
            program.id
            for name in (*action.map.users, *action.map.fillers)
            for programs in self.observed.programs.get(escape(name), {}).values()
            for program in programs.values()
        }
        filled = slots(fd, kernel.map_info(fd))
        for key, program_id in slots(old, action.old).items():
            if key in filled or program_id in own:
                continue
            program = kernel.program_by_id(program_id)
            if program is not None:
                transaction.close_later(program)
                kernel.map_update(fd, key, program.to_bytes(4, sys.byteorder))

    def pin(self, transaction: Transaction, action: Making, fd: int) -> None:
        """A new name is pinned at once, nobody can be disturbed by it; an exchange is staged."""
        name = action.map.name
        self.on_step(Step.PIN_MAP if isinstance(action, CreateMap) else Step.STAGE_MAP, name)
        marked = mark(self.layout, name, _REASONS[type(action)], fd)
        transaction.on_undo(lambda: unlink(marked))
        if isinstance(action, CreateMap):
            path = self.layout.map(name)
            make_parents(transaction, path, self.layout.root)
            if action.map.rights:
                self.on_step(Step.SET_RIGHTS, name)
            pin_marked(fd, marked, path, action.map.rights)
            transaction.on_undo(lambda: unlink(path))
            self.after.made_map(name, fd)
            self.after.has_rights(name, rights_of(path))
            return
        path = self.layout.staged_map(name)
        kernel.pin(fd, path)
        transaction.on_undo(lambda: unlink(path))
        self.after.made_map(name, fd)

    def carry_data(self, transaction: Transaction, action: RenewMap, fd: int) -> None:
        """Copies variables into new global data: as late as can be, their values may change."""
        name, layout = action.map.name, action.map.spec.value_layout
        _, old_layout = self.observed.maps[name].layouts
        if not action.carried or layout is None or old_layout is None:
            return
        self.on_step(Step.CARRY_DATA, name)
        key = bytes(4)
        old_fd = self.kept_fd(transaction, name)
        old = kernel.map_lookup(old_fd, key, action.old.value_size) or b""
        new = kernel.map_lookup(fd, key, action.map.spec.value_size) or b""
        have, want = variables(old_layout), variables(layout)
        kernel.map_update(fd, key, carried_over(old, new, have, want, action.carried))

    def write(self, transaction: Transaction, action: WriteEntries, loaded: Loaded) -> None:
        """Puts entries of a kept map right; what was there before comes back on undo."""
        wanted = action.map
        self.on_step(Step.WRITE_ENTRIES, wanted.name)
        fd = self.kept_fd(transaction, wanted.name)
        resolver = self._resolver(transaction, loaded)
        for place in action.places:
            content = wanted.contents[place]
            put_back = way_back(transaction, fd, content, self._by_id)
            fill(fd, wanted.spec, [content], resolver)
            transaction.on_undo(put_back)
        self.after.wrote(wanted.name, action.places)

    def rename(self, transaction: Transaction, action: RenameMap) -> None:
        """In one step, and nothing that came meanwhile is replaced."""
        name = action.map.name
        self.on_step(Step.RENAME_MAP, name)
        source, path = self.layout.map(action.source), self.layout.map(name)
        make_parents(transaction, path, self.layout.root)
        kernel.rename(source, path)
        transaction.on_undo(lambda: kernel.rename(path, source))
        transaction.on_success(lambda: remove_empty(source, self.layout.root))
        self.after.renamed(name)

    def commit(self, transaction: Transaction, action: RecreateMap | RenewMap) -> None:
        """The new map takes the name."""
        name = action.map.name
        self.on_step(Step.COMMIT_MAP, name)
        staged, path = self.layout.staged_map(name), self.layout.map(name)
        aside = f"{self.layout.staging}/old_maps/{escape(name)}"
        if isinstance(action, RenewMap) and action.source:
            former = self.layout.map(action.source)
            self._take_rights(action, staged, former)
            make_parents(transaction, path, self.layout.root)
            link(staged, path)  # not renamed: nothing that came meanwhile is replaced
            transaction.on_undo(lambda: unlink(path))
            rename(former, aside)
            transaction.on_undo(lambda: rename(aside, former))
            return
        self._take_rights(action, staged, path)
        exchange(transaction, staged, path, aside)

    def _take_rights(self, action: RecreateMap | RenewMap, staged: str, former: str) -> None:
        """A staged pin gets the rights of the one whose place it takes, so that who could open that
        can open this, as far as the manifest does not say otherwise."""
        wanted, name = action.map.rights, action.map.name
        rights = wanted.over(rights_of(former))
        if wanted:
            self.on_step(Step.SET_RIGHTS, name)
        set_rights(staged, rights)
        if wanted:
            check_usable(staged)
        self.after.has_rights(name, rights)

    def set_rights(self, transaction: Transaction, action: SetRights) -> None:
        """What is pinned stays; only who may open it changes."""
        name = action.map.name
        self.on_step(Step.SET_RIGHTS, name)
        path = self.layout.map(self.observed.maps[name].source or name)
        transaction.on_undo(lambda: set_rights(path, action.before))
        set_rights(path, action.rights, action.before)
        check_usable(path)
        self.after.has_rights(name, action.rights)

    def kept_fd(self, transaction: Transaction, name: str) -> int:
        """The descriptor of a kept map: the held one when it is the pinned one."""
        fd, opened = kept_map(self.layout, self.observed, self.held, name)
        return transaction.close_later(fd) if opened else fd

    def opener(self, transaction: Transaction, loaded: Loaded) -> Callable[[str], int]:
        """A kept map's name to its descriptor: of the one that a change makes, where it does."""

        def map_fd(name: str) -> int:
            fd = loaded.new_maps.get(name)
            return self.kept_fd(transaction, name) if fd is None else fd

        return map_fd

    def _resolver(self, transaction: Transaction, loaded: Loaded) -> Resolver:
        def program_fd(object_name: str, program: str) -> int:
            opened = loaded.objects.get(object_name)
            if opened:
                return opened.program_fd(program)
            fd = pinned_program(self.layout, self.observed, object_name, program)
            if fd is None:
                raise KeeperError(f"program {object_name}/{program} is not loaded")
            return transaction.close_later(fd)

        return Resolver(
            program_fd=functools.cache(program_fd), map_fd=self.opener(transaction, loaded)
        )

    def _by_id(self, number: int, outer: bool) -> int | None:
        """What a slot of a map of maps (``outer``), or of programs, names."""
        if outer:
            return map_by_id(self.layout, self.observed.maps, number)
        return program_by_id(self.layout, number)


def way_back(
    transaction: Transaction, fd: int, content: Content, by_id: ById
) -> Callable[[], None]:
    """Reads an entry, and returns what puts it back once it was written."""
    key, info = content.key, kernel.map_info(fd)
    if key is None:
        return lambda: None  # what is added to a bloom filter cannot be taken out
    known = BY_NUMBER.get(info.type)
    size = info.value_size
    if known and known.per_cpu:
        size = (size + 7) // 8 * 8 * kernel.possible_cpus()
    try:
        there = type_name(info.type) != "lpm_trie" or key in kernel.map_keys(fd, info.key_size)
        before = kernel.map_lookup(fd, key, size) if there else None
        written = _as_written(transaction, info, before, by_id) if before else None
    except KernelError:  # it cannot be read, and so not be put back
        return lambda: None
    netns = content.value.netns if isinstance(content.value, InterfaceRef) else None

    def put_back() -> None:
        if written is None:
            kernel.map_delete(fd, key)
            return
        with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
            kernel.map_update(fd, key, written)

    return put_back


def _as_written(transaction: Transaction, info: MapInfo, read: bytes, by_id: ById) -> bytes | None:
    """A value as it has to be written: where an ID is read, a descriptor; None for nothing.

    The descriptor is held from now on: the entry may be all that keeps what it names.
    """
    known = BY_NUMBER.get(info.type)
    outer = bool(known and known.outer)
    at = 4 if info.type in (DEVMAP, DEVMAP_HASH, CPUMAP) else 0
    if not at and not outer and info.type != PROG_ARRAY:
        return read
    if at and not any(read[:at]):
        return None
    number = int.from_bytes(read[at : at + 4], sys.byteorder)
    opened = by_id(number, outer) if number else None
    if opened is None:
        return read
    return read[:at] + transaction.close_later(opened).to_bytes(4, sys.byteorder)


def kept_map(layout: Layout, observed: Observed, held: Held, name: str) -> tuple[int, bool]:
    """The descriptor of a kept map, and whether it was opened for the caller, who closes it then.

    Raises:
        KeeperError: what is pinned is not what was observed.
    """
    found = observed.maps.get(name, ObservedMap())
    info = found.pinned or found.lost
    map_id = info.id if info else 0
    fd = held.map_fd(name, map_id)
    if fd is not None:
        return fd, False
    opened = kernel.pinned_map(layout.map(found.source or name))
    if opened is None or opened[1].id != map_id:
        if opened:
            os.close(opened[0])
        raise KeeperError(f"map {name} was exchanged while the reload went on: reload again")
    return opened[0], True


def pinned_program(
    layout: Layout, observed: Observed, object_name: str, program: str
) -> int | None:
    """A descriptor of a kept program, of the wanted file if that is loaded; None if none is."""
    for digest, programs in observed.programs.get(escape(object_name), {}).items():
        if escape(program) in programs:
            path = f"{layout.programs(object_name, digest)}/{escape(program)}"
            return kernel.pinned(path, kernel.PinKind.PROGRAM)
    return None
