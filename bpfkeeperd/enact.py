"""The second half of a change: pins, swaps and renames, each with the way back."""

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.actions import (
    Attach,
    CreateMap,
    Displace,
    LinkAction,
    LoadObject,
    RecreateMap,
    RenameMap,
    RenewMap,
    Swap,
)
from bpfkeeperd.adopt import adoptable, pin_adopted
from bpfkeeperd.after import After
from bpfkeeperd.directories import (
    make_directory,
    make_new_directory,
    remove_directory,
    remove_tree,
    rename,
)
from bpfkeeperd.enactfilter import FilterEnactor
from bpfkeeperd.enactlinks import LinkEnactor
from bpfkeeperd.enactmaps import MapEnactor
from bpfkeeperd.enactswaps import SwapEnactor, SwapError, is_plain_update
from bpfkeeperd.errors import KeeperError, error_text
from bpfkeeperd.held import Held
from bpfkeeperd.hooks import HookKind
from bpfkeeperd.layout import Layout, escape
from bpfkeeperd.linkparts import LinkParts
from bpfkeeperd.load import Loaded
from bpfkeeperd.observed import Observed
from bpfkeeperd.steps import OnStep, Step
from bpfkeeperd.transaction import Transaction


@dataclass(slots=True)
class Enactor:
    """What every step needs."""

    layout: Layout
    observed: Observed
    held: Held
    on_step: OnStep
    after: After
    notes: list[str] = field(default_factory=list)
    reload: Transaction = field(default_factory=Transaction)
    """All changes that went well so far."""
    maps: MapEnactor = field(init=False)
    parts: LinkParts = field(init=False)
    links: LinkEnactor = field(init=False)
    swaps: SwapEnactor = field(init=False)

    def __post_init__(self) -> None:
        layout, observed, on_step, after = self.layout, self.observed, self.on_step, self.after
        self.maps = MapEnactor(layout, observed, self.held, on_step, after)
        self.parts = LinkParts(
            layout, observed, self.held, on_step, after, self.notes, self.reload, self.maps
        )
        filters = FilterEnactor(layout, on_step, after, self.notes)
        self.links = LinkEnactor(self.parts, filters)
        self.swaps = SwapEnactor(self.parts, filters)

    def enact(self, loaded: Loaded) -> None:
        """Does a change whose objects are loaded, as a part of the reload's transaction.

        Raises:
            SwapError: a swap failed; what was done of the change is in the transaction, to be
                undone with all the rest.
            KeeperError: it failed otherwise and was undone; the message says what could not be.
        """
        transaction = Transaction()
        swapped = self.swaps.swapped
        try:
            self._enact(loaded, transaction)
        except SwapError:
            raise
        except (KeeperError, OSError) as error:
            self.swaps.swapped = swapped
            why = f"{loaded.change.subject}: {error_text(error)}"
            text = f"{why}; rolled back: what ran before goes on running"
            raise KeeperError(text + not_undone(transaction.undo())) from None
        finally:
            self.reload.absorb(transaction)

    def _enact(self, loaded: Loaded, transaction: Transaction) -> None:
        change = loaded.change
        for action in change.makes:
            self.maps.make_ready(transaction, action, loaded)
        for action in change.makes:
            self.maps.pin(transaction, action, loaded.new_maps[action.map.name])
        adoption = self.parts.adoption = adoptable(transaction, loaded, self.observed)
        self.notes += adoption.notes
        for load in change.loads:
            self._pin_programs(transaction, load, loaded)
        pin_adopted(adoption, transaction, change, self.after, self.layout, self.on_step)
        for action in change.makes:
            if isinstance(action, RenewMap) and action.map.spec.internal:
                self.maps.carry_data(transaction, action, loaded.new_maps[action.map.name])
        # From here on what runs changes.
        self._enact_links(transaction, change.links, loaded)
        for write in change.writes:
            self.maps.write(transaction, write, loaded)
        for rights in change.rights:  # of a pin that gets another name, before it has that
            self.maps.set_rights(transaction, rights)
        for map_action in change.maps:
            match map_action:
                case RecreateMap() | RenewMap():
                    self.maps.commit(transaction, map_action)
                case RenameMap():
                    self.maps.rename(transaction, map_action)
                case CreateMap():
                    pass
        for load in change.loads:
            if self._is_staged(load):
                self._commit_programs(transaction, load)

    def _enact_links(
        self, transaction: Transaction, actions: Iterable[LinkAction], loaded: Loaded
    ) -> None:
        for plain, some in itertools.groupby(actions, is_plain_update):
            if plain:
                swaps = [action for action in some if isinstance(action, Swap)]
                self.swaps.update_all(transaction, swaps, loaded)
                continue
            for action in some:
                match action:
                    case Attach():
                        self.links.attach(transaction, action, loaded)
                    case Swap():
                        self.swaps.swap(transaction, action, loaded)
                    case Displace():
                        self.links.displace(transaction, action)

    def _is_pinned(self, load: LoadObject) -> bool:
        """Whether programs of the very same file and settings are pinned already."""
        return load.object.digest in self.observed.programs.get(escape(load.object.name), ())

    def _is_staged(self, load: LoadObject) -> bool:
        """Whether its programs get their directory last. Nothing tells which programs a registered
        map calls: one that is still the former must not be taken for that of pinned programs."""
        kinds = (attachment.hook.kind for attachment in load.object.attachments)
        return self._is_pinned(load) or HookKind.STRUCT_OPS in kinds

    def _pin_programs(self, transaction: Transaction, load: LoadObject, loaded: Loaded) -> None:
        """A new file's programs get their directory at once: what is half made is told by its
        digest and its links. The same file's programs are staged."""
        wanted = load.object
        name = escape(wanted.name)
        directory = f"{self.layout.objects}/{name}/{wanted.digest}"
        staged = self._is_staged(load)
        self.on_step(Step.STAGE_PROGRAMS if staged else Step.PIN_PROGRAMS, wanted.name)
        if not self.observed.programs.get(name):
            parent = os.path.dirname(directory)
            make_directory(parent)
            transaction.on_undo(lambda: remove_directory(parent))
        if staged:
            directory = f"{self.layout.staging}/programs/{name}"
        make_new_directory(directory)
        transaction.on_undo(lambda: remove_tree(directory))
        opened = loaded.objects[wanted.name]
        programs = {
            program: self.parts.adoption.fd(wanted.name, program) or opened.program_fd(program)
            for program in wanted.programs
        }
        for program, fd in programs.items():
            kernel.pin(fd, f"{directory}/{escape(program)}")
        self.after.loaded(name, wanted.digest, programs)

    def _commit_programs(self, transaction: Transaction, load: LoadObject) -> None:
        """Staged programs get their directory, in place of those of the same file if there are."""
        wanted = load.object
        self.on_step(Step.COMMIT_PROGRAMS, wanted.name)
        path = self.layout.programs(wanted.name, wanted.digest)
        aside = f"{self.layout.staging}/old_programs/{escape(wanted.name)}"
        staged = f"{self.layout.staging}/programs/{escape(wanted.name)}"
        if self._is_pinned(load):
            rename(path, aside)
            transaction.on_undo(lambda: rename(aside, path))
        rename(staged, path)
        transaction.on_undo(lambda: rename(path, staged))


def not_undone(failed: list[str]) -> str:
    """How a message goes on where something could not be undone."""
    return f"; could not be undone: {'; '.join(failed)}" if failed else ""
