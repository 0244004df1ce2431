"""Carries out a plan. Each change is a transaction: what fails is undone, the others go ahead."""

import contextlib
import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.actions import (
    REPLACED,
    Attach,
    CreateMap,
    Detach,
    LoadObject,
    Plan,
    RecreateMap,
    Removal,
    RemovePrograms,
    Restore,
    RestoreLink,
    RestoreMap,
    Swap,
)
from bpfkeeperd.after import After
from bpfkeeperd.attach import create_link
from bpfkeeperd.errors import KeeperError, KernelError, ObjectError
from bpfkeeperd.held import Held
from bpfkeeperd.layout import Layout, LinkKey, escape
from bpfkeeperd.load import Loaded, OpenObjects, load_all
from bpfkeeperd.observed import Observed
from bpfkeeperd.remove import remove_tree
from bpfkeeperd.state import Failure
from bpfkeeperd.steps import OnStep, Step


@dataclass(slots=True)
class Applied:
    """What came of a plan."""

    done: list[str] = field(default_factory=list)
    """One line for each action that was done."""
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    made_maps: set[str] = field(default_factory=set)
    """Maps whose pin was made now."""
    recreated_maps: set[str] = field(default_factory=set)
    observed: Observed | None = None
    """What is now; None when it takes another look to know."""


@dataclass(slots=True)
class _Context:
    layout: Layout
    observed: Observed
    held: Held
    on_step: OnStep
    applied: Applied
    after: After


def apply(
    plan: Plan,
    observed: Observed,
    layout: Layout,
    *,
    held: Held,
    opened: OpenObjects,
    on_step: OnStep,
) -> Applied:
    """Does everything a plan says, in its order.

    ``opened`` holds objects that are open already; those that are used are taken out of it. What
    fails of a change is undone; everything else goes ahead.
    """
    applied = Applied()
    context = _Context(layout, observed, held, on_step, applied, After(observed))
    sweep_staging(layout, on_step)
    if not plan.actions:
        applied.observed = observed
        return applied
    for directory in (layout.own, layout.objects, layout.links, layout.staging):
        _make_directory(directory)
    for kind in ("maps", "old_maps", "programs", "old_programs", "links"):
        _make_directory(f"{layout.staging}/{kind}")
    for restore in plan.restores:
        _restore(context, restore)
    with ExitStack() as stack:

        def kept_map(name: str) -> int:
            return _kept_map(context, stack, name)

        loaded = load_all(plan.changes, opened, kept_map, on_step)
        for item in loaded:
            stack.enter_context(item)
        for item in loaded:
            if item.error:
                detail = item.error.detail if isinstance(item.error, ObjectError) else ""
                applied.failures.append(Failure(str(item.error), detail))
            else:
                _enact(context, item)
    for removal in plan.removals:
        _remove(context, removal)
    remove_tree(layout.staging)
    if not applied.failures and not plan.restores:
        applied.observed = context.after.observed()
    return applied


def _kept_map(context: _Context, stack: ExitStack, name: str) -> int:
    """The descriptor of a kept map: the held one when it is the pinned one."""
    found = context.observed.maps[name]
    info = found.pinned or found.lost
    map_id = info.id if info else 0
    fd = context.held.map_fd(name, map_id)
    if fd is not None:
        return fd
    opened = kernel.pinned_map(context.layout.map(name))
    if opened:
        stack.callback(os.close, opened[0])
    if opened is None or opened[1].id != map_id:
        raise KeeperError(f"map {name} was exchanged while the reload went on: reload again")
    return opened[0]


def _restore(context: _Context, restore: Restore) -> None:
    try:
        match restore:
            case RestoreMap(wanted, found):
                context.on_step(Step.RESTORE_MAP, wanted.name)
                _pin_lost_map(context, wanted.name, found.id)
                context.applied.made_maps.add(wanted.name)
            case RestoreLink(key, info):
                context.on_step(Step.RESTORE_LINK, "/".join(key))
                fd = context.held.link_fd(key, info.id)
                if fd is not None:
                    _make_link_directory(context.layout, key)
                    kernel.pin(fd, context.layout.link_at(key))
        context.applied.done.append(str(restore))
    except KeeperError as error:
        context.applied.failures.append(Failure(str(error)))


def _pin_lost_map(context: _Context, name: str, map_id: int) -> None:
    fd = context.held.map_fd(name, map_id)
    if fd is not None:
        kernel.pin(fd, context.layout.map(name))
        return
    fd = kernel.map_by_id(map_id)
    if fd is None:
        raise KeeperError(f"map {name} (ID {map_id}) went away before it could be pinned again")
    with kernel.holding(fd):
        kernel.pin(fd, context.layout.map(name))


class _Transaction:
    """Remembers how to undo what was done."""

    __slots__ = ("_closing", "_settle", "_undo")

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._settle: list[Callable[[], None]] = []
        self._closing = ExitStack()

    def on_undo(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def on_success(self, settle: Callable[[], None]) -> None:
        """For what must wait until nothing can fail any more, and cannot fail itself."""
        self._settle.append(settle)

    def settle(self) -> None:
        for step in self._settle:
            step()

    def close_later(self, fd: int) -> int:
        """Closes a descriptor when the transaction is over, undone or not."""
        self._closing.callback(os.close, fd)
        return fd

    def undo(self) -> list[str]:
        """Undoes everything, last first; returns what could not be undone."""
        failed = []
        for step in reversed(self._undo):
            try:
                step()
            except (KeeperError, OSError) as error:
                failed.append(str(error))
        self._undo.clear()
        return failed

    def close(self) -> None:
        self._closing.close()


def _enact(context: _Context, loaded: Loaded) -> None:
    """The second half of a change, from the first pin to the last rename."""
    transaction = _Transaction()
    change = loaded.change
    try:
        for map_action in change.maps:
            _stage_map(context, transaction, map_action, loaded.new_maps[map_action.map.name])
        for load in change.loads:
            _stage_programs(context, transaction, load, loaded)
        # From here on what runs changes; up to the last rename, every step can be undone.
        for link_action in change.links:
            match link_action:
                case Attach():
                    _attach(context, transaction, link_action, loaded)
                case Swap():
                    _swap(context, transaction, link_action, loaded)
        for map_action in change.maps:
            if isinstance(map_action, RecreateMap):
                _commit_map(context, transaction, map_action.map.name)
        for load in change.loads:
            _commit_programs(context, transaction, load)
    except (KeeperError, OSError) as error:
        message = _error_text(error)
        undone = transaction.undo()
        names = ", ".join(load.object.name for load in change.loads) or "the change"
        rolled_back = f"{names}: {message}; rolled back: what ran before goes on running"
        if undone:
            rolled_back += f"; could not be undone: {'; '.join(undone)}"
        context.applied.failures.append(Failure(rolled_back))
        transaction.close()
        return
    _note_success(context, loaded)
    transaction.settle()
    transaction.close()
    for removal in change.removals:
        _remove(context, removal)


def _note_success(context: _Context, loaded: Loaded) -> None:
    applied, change = context.applied, loaded.change
    for map_action in change.maps:
        name = map_action.map.name
        applied.made_maps.add(name)
        if isinstance(map_action, RecreateMap):
            applied.recreated_maps.add(name)
        context.after.made_map(name, loaded.new_maps[name])
    applied.done += [str(action) for action in (*change.maps, *change.loads, *change.links)]


def _error_text(error: KeeperError | OSError) -> str:
    if isinstance(error, OSError):
        return f"cannot change {error.filename}: {error.strerror}"
    return str(error)


def _stage_map(
    context: _Context, transaction: _Transaction, action: CreateMap | RecreateMap, fd: int
) -> None:
    """A new name is pinned at once, nobody can be disturbed by it; an exchange is staged."""
    name = action.map.name
    if isinstance(action, CreateMap):
        context.on_step(Step.PIN_MAP, name)
        path = context.layout.map(name)
    else:
        context.on_step(Step.STAGE_MAP, name)
        path = f"{context.layout.staging}/maps/{name}"
    kernel.pin(fd, path)
    transaction.on_undo(lambda: _unlink(path))


def _stage_programs(
    context: _Context, transaction: _Transaction, load: LoadObject, loaded: Loaded
) -> None:
    wanted = load.object
    context.on_step(Step.STAGE_PROGRAMS, wanted.name)
    directory = f"{context.layout.staging}/programs/{escape(wanted.name)}"
    os.mkdir(directory, 0o700)
    transaction.on_undo(lambda: remove_tree(directory))
    opened = loaded.objects[wanted.name]
    programs = {program: opened.program_fd(program) for program in wanted.programs}
    for program, fd in programs.items():
        kernel.pin(fd, f"{directory}/{escape(program)}")
    context.after.loaded(wanted.name, wanted.digest, programs)


def _program_fd(
    context: _Context, transaction: _Transaction, action: Attach | Swap, loaded: Loaded
) -> int:
    """The program to attach: the one just loaded, or the one that is pinned."""
    attachment = action.attachment
    opened = loaded.objects.get(attachment.object)
    if opened:
        return opened.program_fd(attachment.program)
    digests = context.observed.programs.get(escape(attachment.object), {})
    for digest, programs in digests.items():
        if escape(attachment.program) in programs:
            directory = context.layout.programs(attachment.object, digest)
            path = f"{directory}/{escape(attachment.program)}"
            fd = kernel.pinned(path, kernel.PinKind.PROGRAM)
            if fd is not None:
                return transaction.close_later(fd)
    raise KeeperError(f"program {attachment.program} of {attachment.object} is not pinned")


def _attach(context: _Context, transaction: _Transaction, action: Attach, loaded: Loaded) -> None:
    attachment = action.attachment
    context.on_step(Step.ATTACH, str(attachment))
    prog_fd = _program_fd(context, transaction, action, loaded)
    fd, note = create_link(prog_fd, attachment)
    transaction.close_later(fd)
    if note:
        context.applied.notes.append(note)
    key = attachment.key
    path = context.layout.link_at(key)
    _make_link_directory(context.layout, key, transaction)
    known = context.observed.links.get(key)
    if known and known.pinned:  # a dead link's pin stands there
        staged = f"{context.layout.staging}/links/{fd}"
        kernel.pin(fd, staged)
        transaction.on_undo(lambda: _unlink(staged))
        context.on_step(Step.COMMIT_LINK, str(attachment))
        os.rename(staged, path)
    else:
        kernel.pin(fd, path)
    transaction.on_undo(lambda: _unlink(path))
    context.after.attached(attachment, fd)


def _swap(context: _Context, transaction: _Transaction, action: Swap, loaded: Loaded) -> None:
    attachment = action.attachment
    new = _program_fd(context, transaction, action, loaded)
    link = context.held.link_fd(action.key, action.link.id)
    if link is None:
        opened = kernel.pinned(context.layout.link_at(action.key), kernel.PinKind.LINK)
        if opened is None:
            raise KeeperError(f"the link of {attachment} went away: reload again")
        link = transaction.close_later(opened)
    old = transaction.close_later(_old_program_fd(context, action))
    context.on_step(Step.SWAP, str(attachment))
    try:
        kernel.link_update(link, new, old)
    except KernelError as error:
        remedy = ""
        if error.errno == errno.EPERM:
            remedy = "somebody else changed its program meanwhile: reload again"
        raise KernelError(f"swap the program of {attachment}", error.errno, remedy) from None
    transaction.on_undo(lambda: kernel.link_update(link, old, new))
    context.after.swapped(action, new)
    key = attachment.key
    if key != action.key:
        context.on_step(Step.COMMIT_LINK, str(attachment))
        source, path = context.layout.link_at(action.key), context.layout.link_at(key)
        _make_link_directory(context.layout, key, transaction)
        os.rename(source, path)
        transaction.on_undo(lambda: os.rename(path, source))
        transaction.on_success(lambda: _remove_empty(source, context.layout.links))


def _old_program_fd(context: _Context, action: Swap) -> int:
    """The program that a link runs now: to compare with, and to swap back to."""
    wanted = action.link.prog_id
    try:
        fd = kernel.program_by_id(wanted)
    except KernelError:  # EPERM without CAP_SYS_ADMIN: it is pinned too, if it is ours
        fd = None
        for object_name, digests in context.observed.programs.items():
            for digest, programs in digests.items():
                for name, info in programs.items():
                    if info.id == wanted:
                        path = f"{context.layout.objects}/{object_name}/{digest}/{name}"
                        fd = kernel.pinned(path, kernel.PinKind.PROGRAM)
    if fd is None:
        raise KeeperError(
            f"cannot open program ID {wanted}, which {action.attachment} runs now, to be able to"
            " swap back: it takes CAP_SYS_ADMIN"
        )
    return fd


def _commit_map(context: _Context, transaction: _Transaction, name: str) -> None:
    """The new map takes the name; the old one's pin is kept aside until nothing can fail."""
    context.on_step(Step.COMMIT_MAP, name)
    path = context.layout.map(name)
    aside = f"{context.layout.staging}/old_maps/{name}"
    os.link(path, aside)
    transaction.on_undo(lambda: _unlink(aside))
    os.rename(f"{context.layout.staging}/maps/{name}", path)
    transaction.on_undo(lambda: os.rename(aside, path))


def _commit_programs(context: _Context, transaction: _Transaction, load: LoadObject) -> None:
    wanted = load.object
    context.on_step(Step.COMMIT_PROGRAMS, wanted.name)
    staged = f"{context.layout.staging}/programs/{escape(wanted.name)}"
    path = context.layout.programs(wanted.name, wanted.digest)
    digests = context.observed.programs.get(escape(wanted.name))
    if digests is None:
        directory = context.layout.object(wanted.name)
        _make_directory(directory)
        transaction.on_undo(lambda: os.rmdir(directory))
    elif wanted.digest in digests:  # the same file loaded again
        aside = f"{context.layout.staging}/old_programs/{escape(wanted.name)}"
        os.rename(path, aside)
        transaction.on_undo(lambda: os.rename(aside, path))
    os.rename(staged, path)
    transaction.on_undo(lambda: os.rename(path, staged))


def _remove(context: _Context, removal: Removal) -> None:
    """Lets go of what nobody wants any more."""
    try:
        match removal:
            case Detach(key):
                context.on_step(Step.DETACH, "/".join(key))
                path = context.layout.link_at(key)
                os.unlink(path)
                context.held.drop_link(key)
                _remove_empty(path, context.layout.links)
            case RemovePrograms(object_name, digest):
                context.on_step(Step.REMOVE_PROGRAMS, object_name)
                path = f"{context.layout.objects}/{object_name}/{digest}"
                for program in context.observed.programs[object_name][digest]:
                    _unlink(f"{path}/{program}")
                os.rmdir(path)
                if removal.last:
                    os.rmdir(os.path.dirname(path))
        context.after.removed(removal)
        if removal.reason != REPLACED:  # that goes without saying
            context.applied.done.append(str(removal))
    except (KeeperError, OSError) as error:
        context.applied.failures.append(Failure(_error_text(error)))


def sweep_staging(layout: Layout, on_step: OnStep) -> None:
    """Removes what an interrupted reload left half made."""
    if os.path.isdir(layout.staging):
        on_step(Step.SWEEP_STAGING, layout.staging)
        remove_tree(layout.staging)


def _make_link_directory(
    layout: Layout, key: LinkKey, transaction: _Transaction | None = None
) -> None:
    _make_directory(f"{layout.links}/{key[0]}")
    _make_directory(f"{layout.links}/{key[0]}/{key[1]}")
    if transaction:
        transaction.on_undo(lambda: _remove_empty(layout.link_at(key), layout.links))


def _make_directory(path: str) -> None:
    """Makes one directory for this user alone; it may be there."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise KernelError(f"make directory {path}", error.errno or 0) from None


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _remove_empty(path: str, top: str) -> None:
    """Removes the directories above a path that are empty now, up to but without ``top``."""
    while (path := os.path.dirname(path)) != top:
        try:
            os.rmdir(path)
        except OSError:
            return
