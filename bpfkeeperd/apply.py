"""Carries out a plan. A change that fails is undone, the others go ahead; all of them are undone
when a swap fails, or a program does not show that it works."""

import itertools
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.actions import (
    REPLACED,
    Change,
    Detach,
    MapAction,
    Plan,
    Refusal,
    Removal,
    RemoveArray,
    RemovePrograms,
    RemoveStub,
    RenameMap,
    RenewMap,
    Restore,
    RestoreLink,
    RestoreMap,
    RestoreProgram,
    RestoreStub,
)
from bpfkeeperd.after import After
from bpfkeeperd.attachnet import end_netfilter_link
from bpfkeeperd.directories import (
    is_directory,
    is_there,
    make_directory,
    make_parents,
    names_in,
    remove_directory,
    remove_empty,
    remove_tree,
    rename,
    unlink,
)
from bpfkeeperd.enact import Enactor, not_undone
from bpfkeeperd.enactfilter import restore_record
from bpfkeeperd.enactmaps import kept_map
from bpfkeeperd.enactstubs import remove_stub, restore_stub
from bpfkeeperd.enactswaps import SwapError
from bpfkeeperd.errors import KeeperError, KernelError, ObjectError, error_text
from bpfkeeperd.held import Held
from bpfkeeperd.hooks import CLSACT_LINK
from bpfkeeperd.layout import Layout, LinkKey
from bpfkeeperd.linkparts import make_link_directory
from bpfkeeperd.load import Loaded, OpenObject, load_each
from bpfkeeperd.marks import mark, pin_marked
from bpfkeeperd.observed import Observed
from bpfkeeperd.pinnotes import write_note
from bpfkeeperd.pinroot import has_own, make_own
from bpfkeeperd.recorded import detach_recorded
from bpfkeeperd.state import Failure, MapIdChange
from bpfkeeperd.steps import OnStep, Step
from bpfkeeperd.targetnames import is_netfilter
from bpfkeeperd.transaction import Transaction
from bpfkeeperd.trial import Patience, Trials, UnhealthyError


@dataclass(slots=True)
class Applied:
    """What came of a plan."""

    done: list[str] = field(default_factory=list)
    """One line for each action that was done."""
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    renamed_maps: dict[str, str] = field(default_factory=dict)
    """New name to old."""
    refusals: list[Refusal] = field(default_factory=list)
    """Of what turned out to be impossible, and was left out."""
    adopted: dict[LinkKey, int] = field(default_factory=dict)
    """Attachments that are links of others now, by their IDs."""
    observed: Observed | None = None
    """What is now; None when it takes another look to know."""
    rolled_back: bool = False
    swapping_seconds: float = 0.0
    """All changes were undone."""
    unhealthy: str = ""
    """Why the new version as a whole is not to be tried again by itself."""

    def took_place(self, action: MapAction) -> None:
        match action:
            case RenameMap() | RenewMap() if action.source:
                self.renamed_maps[action.map.name] = action.source
            case _:
                pass


def together(parts: Sequence[Applied]) -> Applied:
    """What came of several plans, one after the other."""
    if len(parts) == 1:
        return parts[0]
    whole = Applied()  # it takes another look to know what is now
    for part in parts:
        whole.done += part.done
        whole.failures += part.failures
        whole.notes += part.notes
        whole.refusals += part.refusals
        whole.adopted |= part.adopted
        whole.renamed_maps |= part.renamed_maps
    return whole


def apply(
    plan: Plan,
    observed: Observed,
    layout: Layout,
    *,
    held: Held,
    open_object: OpenObject,
    on_step: OnStep,
    patience: Patience,
) -> Applied:
    """Does everything a plan says, in its order.

    What fails of a change is undone; everything else goes ahead. A failing swap, and a program that
    does not show its health, undo all changes.

    Raises:
        KernelError, PinRootError: the keeper's own directories cannot be made, or somebody else has
            made them; nothing was done.
    """
    applied = Applied()
    own = has_own(layout.root)
    if own:
        _sweep(layout, observed, on_step)
    if plan.actions:
        enactor = Enactor(layout, observed, held, on_step, After(observed), applied.notes)
        enactor.swaps.swaps = sum(change.swaps for change in plan.changes)
        trials = Trials(enactor, plan.changes)
        _carry_out(trials, plan, open_object, applied, patience)
    else:
        applied.observed = observed
    if own and not applied.failures and not plan.refusals:
        try:
            remove_tree(layout.leftover)
        except KeeperError as error:
            applied.failures.append(Failure(str(error)))
    return applied


def _carry_out(
    trials: Trials, plan: Plan, open_object: OpenObject, applied: Applied, patience: Patience
) -> None:
    enactor, layout = trials.enactor, trials.enactor.layout
    make_own(layout.root)
    for directory in (layout.objects, layout.links, layout.staging):
        make_directory(directory)
    for kind in ("maps", "old_maps", "programs", "old_programs", "links"):
        make_directory(f"{layout.staging}/{kind}")
    for restore in plan.restores:
        _restore(enactor, restore, applied)
    _make_changes(trials, plan, open_object, applied, patience)
    for removal in plan.removals if not applied.rolled_back else ():
        _remove(enactor, removal, applied)
    try:
        remove_tree(layout.staging)
    except KeeperError as error:  # the next reload does it
        applied.failures.append(Failure(str(error)))
    applied.swapping_seconds = enactor.swaps.seconds
    applied.refusals += enactor.links.refused.values()
    applied.adopted |= enactor.links.adopted
    # What others have attached is not followed step by step.
    sure = not enactor.observed.foreign and not enactor.after.unsure
    if not applied.failures and not plan.restores and sure:
        applied.observed = enactor.after.observed()


def _sweep(layout: Layout, observed: Observed, on_step: OnStep) -> None:
    """Removes what an interrupted reload left half made, or half removed.

    Its new maps and the former stubs stay until nothing runs on them any more: without a pin, the
    kernel empties a program array under the programs that use it.
    """
    for path in observed.empty_links:
        remove_empty(f"{layout.links}/{path}/", layout.links)
    for name, digests in observed.programs.items():
        if not digests:
            remove_empty(f"{layout.objects}/{name}/", layout.objects)
    if is_directory(layout.staging):
        on_step(Step.SWEEP_STAGING, layout.staging)
        for kind in ("maps", "stubs"):
            staged = f"{layout.staging}/{kind}"
            if names_in(staged):
                make_directory(layout.leftover)
                rename(staged, f"{layout.leftover}/{_free_number(names_in(layout.leftover))}")
        remove_tree(layout.staging)


def _free_number(taken: Collection[str]) -> int:
    """Rows of what was left over are counted; what was removed of them leaves gaps."""
    return next(number for number in itertools.count() if str(number) not in taken)


def _restore(enactor: Enactor, restore: Restore, applied: Applied) -> None:
    """Pins again what is alive without its pin. This is never undone: it cannot do harm."""
    layout, held = enactor.layout, enactor.held
    try:
        match restore:
            case RestoreMap(wanted, found):
                enactor.on_step(Step.RESTORE_MAP, wanted.name)
                fd = held.map_fd(wanted.name, found.id)
                if fd is None:  # from before it got this name
                    fd = held.map_fd(wanted.former, found.id)
                with ExitStack() as stack:
                    if fd is None:
                        fd = kernel.map_by_id(found.id)
                        if fd is None:
                            raise KeeperError(f"map {wanted.name} went away: reload again")
                        stack.callback(os.close, fd)
                    path = layout.map(wanted.name)
                    make_parents(Transaction(), path, layout.root)
                    # Another ID than the last one: somebody else's map stood there meanwhile.
                    marked = mark(layout, wanted.name, MapIdChange.REPLACED, fd)
                    if wanted.rights:
                        enactor.on_step(Step.SET_RIGHTS, wanted.name)
                    try:
                        pin_marked(fd, marked, path, wanted.rights)
                    except KernelError:
                        # For root alone is better than gone with its last descriptor.
                        with suppress(KernelError):
                            kernel.pin(fd, path)
                        raise
            case RestoreLink(key, info) if info.type == CLSACT_LINK:
                enactor.on_step(Step.RESTORE_LINK, "/".join(key))
                restore_record(layout, key, info, held)
            case RestoreLink(key, info):
                enactor.on_step(Step.RESTORE_LINK, "/".join(key))
                fd = held.link_fd(key, info.id)
                if fd is not None:
                    make_link_directory(layout, key)
                    kernel.pin(fd, layout.link_at(key))
                    if noted := held.note(key):
                        write_note(layout.link_at(key), noted)
            case RestoreProgram(name, digest, program):
                enactor.on_step(Step.RESTORE_PROGRAM, f"{name}/{program}")
                fd = held.program_fd((name, digest, program))
                if fd is not None:
                    make_directory(f"{layout.objects}/{name}")
                    make_directory(f"{layout.objects}/{name}/{digest}")
                    kernel.pin(fd, f"{layout.objects}/{name}/{digest}/{program}")
            case RestoreStub(stub_key):
                enactor.on_step(Step.RESTORE_STUB, "/".join(stub_key))
                restore_stub(layout, held, stub_key)
        applied.done.append(str(restore))
    except KeeperError as error:
        applied.failures.append(Failure(str(error)))


def _make_changes(
    trials: Trials, plan: Plan, open_object: OpenObject, applied: Applied, patience: Patience
) -> None:
    """One change after the other, each as soon as the verifier has judged all of its programs.

    They are one transaction, which ends when all programs on trial have shown that they work.
    """
    enactor = trials.enactor
    with ExitStack() as stack:
        stack.callback(enactor.reload.close)

        def kept_map(name: str) -> int:
            return _kept_map(enactor, stack, name)

        loaded = [stack.enter_context(Loaded(change)) for change in plan.changes]
        stack.enter_context(trials)
        judged = stack.enter_context(
            closing(load_each(loaded, open_object, kept_map, enactor.on_step))
        )
        try:
            enacted = _enact(trials, judged, applied)
            with patience.letting_look():
                fault = trials.verdict(patience.pause)
            if fault:
                raise UnhealthyError(fault)
        except (SwapError, UnhealthyError) as error:
            _roll_back(enactor, applied, error)
            return
        except BaseException:
            enactor.reload.undo()
            raise
        applied.failures += map(Failure, enactor.reload.settle())
        for change in enacted:
            _settled(enactor, change, applied)
        applied.done += trials.notes


def _enact(trials: Trials, judged: Iterable[Loaded], applied: Applied) -> list[Change]:
    """The changes that went well.

    Raises:
        SwapError, UnhealthyError: nothing may remain.
    """
    enacted = []
    for item in judged:
        try:
            if item.error:
                raise item.error
            trials.check(item.change)
            trials.enactor.enact(item)
        except SwapError:
            raise
        except KeeperError as error:
            detail = error.detail if isinstance(error, ObjectError) else ""
            applied.failures.append(Failure(str(error), detail))
            continue
        enacted.append(item.change)
        trials.begin(item)
    return enacted


def _roll_back(enactor: Enactor, applied: Applied, error: SwapError | UnhealthyError) -> None:
    """Undoes all changes, last first."""
    text = str(error)
    if isinstance(error, UnhealthyError):
        applied.unhealthy = text
        text += "; the whole reload was rolled back: what ran before goes on running"
    applied.failures.append(Failure(text + not_undone(enactor.reload.undo())))
    applied.rolled_back = True


def _settled(enactor: Enactor, change: Change, applied: Applied) -> None:
    """A change that stays: what it replaced goes."""
    for action in change.maps:
        applied.took_place(action)
    links = [link for link in change.links if link not in enactor.links.refused]
    done = (*change.maps, *change.loads, *links, *change.writes, *change.rights)
    applied.done += map(str, done)
    for removal in change.removals:
        _remove(enactor, removal, applied)


def _kept_map(enactor: Enactor, stack: ExitStack, name: str) -> int:
    fd, opened = kept_map(enactor.layout, enactor.observed, enactor.held, name)
    if opened:
        stack.callback(os.close, fd)
    return fd


def _remove(enactor: Enactor, removal: Removal, applied: Applied) -> None:
    """Lets go of what nobody wants any more."""
    layout = enactor.layout
    try:
        match removal:
            case Detach(key):
                enactor.on_step(Step.DETACH, "/".join(key))
                if is_there(layout.attached_at(key)):
                    note = detach_recorded(layout, key)
                    applied.notes += [note] if note else []
                path = layout.link_at(key)
                if is_netfilter(key):
                    end_netfilter_link(path)
                unlink(path)  # the pin may be gone, and the link alive in a descriptor
                enactor.held.drop_link(key)
                remove_empty(path, layout.links)
            case RemovePrograms(object_name, digest):
                enactor.on_step(Step.REMOVE_PROGRAMS, object_name)
                path = f"{layout.objects}/{object_name}/{digest}"
                for program in enactor.observed.programs[object_name][digest]:
                    unlink(f"{path}/{program}")
                remove_directory(path)
                if removal.last:
                    remove_directory(os.path.dirname(path))
            case RemoveArray(name):
                enactor.on_step(Step.REMOVE_ARRAY, name)
                unlink(layout.map(name))
                remove_empty(layout.map(name), layout.own)
            case RemoveStub(stub_key):
                enactor.on_step(Step.REMOVE_STUB, "/".join(stub_key))
                remove_stub(layout, stub_key)
        enactor.after.removed(removal)
        if removal.reason != REPLACED:  # that goes without saying
            applied.done.append(str(removal))
    except (KeeperError, OSError) as error:
        applied.failures.append(Failure(error_text(error)))
