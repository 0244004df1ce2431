"""Programs are swapped for others, each way with the way back."""

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.actions import LinkAction, Swap
from bpfkeeperd.attach import MapOpener, create_link
from bpfkeeperd.attachnet import Around, end_netfilter_link, note_netns
from bpfkeeperd.byid import map_by_id, program_by_id
from bpfkeeperd.desired import Attachment
from bpfkeeperd.directories import exchange, make_parents, remove_empty, rename, unlink
from bpfkeeperd.enactfilter import FilterEnactor
from bpfkeeperd.errors import KeeperError, KernelError, errno_text, error_text
from bpfkeeperd.hooks import CLSACT_LINK, SOCKMAP_ATTACHED, HookKind, SwapWay
from bpfkeeperd.linkparts import LinkParts
from bpfkeeperd.load import Loaded
from bpfkeeperd.state import LinkInfo
from bpfkeeperd.steps import Step
from bpfkeeperd.transaction import Transaction

LSM_CGROUP = "lsm_cgroup"
SWAPS_AT_ONCE = 512
"""Links that are updated by one call into C."""


class SwapError(KeeperError):
    """A program could not be swapped: nothing of the reload may remain."""


@dataclass(slots=True)
class SwapEnactor:
    """Swaps, and counts."""

    parts: LinkParts
    filters: FilterEnactor
    swaps: int = 0
    """How many swaps the whole reload has."""
    tried: int = 0
    swapped: int = 0
    """And not undone."""
    _began: float | None = None
    _ended: float = 0.0
    _old_programs: dict[int, int] = field(default_factory=dict)
    """By their ID: many links may run the same one."""

    def swap(self, transaction: Transaction, action: Swap, loaded: Loaded) -> None:
        """A swap, of which a failure tells how far the reload had come."""
        self.tried += 1
        try:
            with self._timed():
                self._exchange(transaction, action, loaded)
        except (KeeperError, OSError) as error:
            raise self._swap_error(loaded, error) from None
        self.swapped += 1

    def _swap_error(self, loaded: Loaded, error: KeeperError | OSError) -> SwapError:
        before = ""
        if self.swapped:
            were = "was" if self.swapped == 1 else "were"
            before = f"; the {self.swapped} swapped before {were} swapped back"
        return SwapError(
            f"{loaded.change.subject}: swap {self.tried} of {self.swaps} failed:"
            f" {error_text(error)}{before}; nothing of this reload remains: what ran before goes"
            " on running"
        )

    @property
    def seconds(self) -> float:
        """From before the first swap to after the last."""
        return self._ended - self._began if self._began is not None else 0.0

    @contextmanager
    def _timed(self) -> Iterator[None]:
        if self._began is None:
            self._began = time.monotonic()
        try:
            yield
        finally:
            self._ended = time.monotonic()

    def update_all(self, transaction: Transaction, actions: Sequence[Swap], loaded: Loaded) -> None:
        """Swaps by BPF_LINK_UPDATE where nothing else is to be done.

        Raises:
            SwapError: as `swap`.
        """
        ready: list[tuple[int, int, int]] = []
        failed: KeeperError | OSError | None = None
        try:
            for action in actions:
                new = self.parts.program_fd(transaction, action, loaded)
                ready.append(
                    (self._link_fd(transaction, action), new, self._old_program_fd(action))
                )
        except (KeeperError, OSError) as error:
            failed = error
        updated, gone = list[Swap](), list[Swap]()
        for first in range(0, len(ready), SWAPS_AT_ONCE):
            some = slice(first, min(first + SWAPS_AT_ONCE, len(ready)))
            wrong = self._update_some(transaction, actions[some], ready[some], updated, gone)
            if wrong:
                failed = wrong
                break
        self.parts.after.swapped_all(updated)
        for action in gone:
            self._went_away(action.attachment)
        if failed:
            self.tried += 1
            raise self._swap_error(loaded, failed) from None

    def _update_some(
        self,
        transaction: Transaction,
        actions: Sequence[Swap],
        ready: Sequence[tuple[int, int, int]],
        updated: list[Swap],
        gone: list[Swap],
    ) -> KeeperError | OSError | None:
        """One right after the other: links run old and new versions side by side for no longer than
        the kernel takes. Adds to those ``updated`` and ``gone``; returns what went wrong."""
        wrong: KeeperError | OSError | None = None
        announced = 0
        try:
            for action in actions:
                self.parts.on_step(Step.SWAP, action.attachment)
                announced += 1
        except (KeeperError, OSError) as error:
            wrong = error
        with self._timed():
            done, dead, number = _swap_all(ready[:announced])
        transaction.on_undo(lambda: _swap_back(_way_back(ready[:done], dead)))
        updated += [action for place, action in enumerate(actions[:done]) if place not in dead]
        gone += [actions[place] for place in dead]
        self.tried += done
        self.swapped += done - len(dead)
        return _update_error(actions[done].attachment, number) if number else wrong

    def _exchange(self, transaction: Transaction, action: Swap, loaded: Loaded) -> None:
        attachment = action.attachment
        if action.link.type == CLSACT_LINK:
            new = self.parts.program_fd(transaction, action, loaded)
            old = self._old_program_fd(action)
            self.filters.swap(transaction, action, new, old)
            return
        if action.stub:
            new = self.parts.program_fd(transaction, action, loaded)
            if self.parts.stubs.swap(transaction, attachment, action.stub, new):
                self.parts.after.swapped(action, new)
                self._take_over(transaction, action)
                return
            self.parts.notes.append(
                f"{attachment} gets a new stub, beside the former one for a moment: that cannot"
                " call a program of another kind"
            )
        match attachment.hook.rules.swap:
            case SwapWay.UPDATE:
                self._update_or_overlap(transaction, action, loaded)
            case SwapWay.OVERLAP:
                self._overlap(transaction, action, loaded)
            case SwapWay.STUB:
                self.parts.notes.append(
                    f"{attachment} was not behind its stub: sockets that are in the map go on"
                    " with the former program, those that come get the new one"
                )
                self._update(transaction, action, loaded)
            case SwapWay.REPLACE:
                raise KeeperError(f"cannot swap the program of {action.attachment}")

    def _update_or_overlap(self, transaction: Transaction, action: Swap, loaded: Loaded) -> None:
        """A cgroup has its links of lsm_cgroup by function: one is not found to be updated among
        those of another function, which only the section of the new program tells."""
        try:
            self._update(transaction, action, loaded)
        except KernelError as error:
            if error.errno != errno.ENOENT or action.attachment.hook.name != LSM_CGROUP:
                raise
            self.parts.notes.append(
                f"{action.attachment} is at another function of the kernel now, and got a new link"
            )
            self._overlap(transaction, action, loaded)

    def _overlap(self, transaction: Transaction, action: Swap, loaded: Loaded) -> None:
        """Attaches the new program beside the old one, which goes when nothing can fail any more:
        for that moment both run."""
        attachment = action.attachment
        self.parts.on_step(Step.SWAP, attachment)
        fd, note = self.parts.create_link(transaction, action, loaded, Around(action.link))
        transaction.close_later(fd)
        if note:
            self.parts.notes.append(note)
        info = kernel.link_info(fd)
        staged = f"{self.parts.layout.staging}/links/new{info.id}"
        aside = f"{self.parts.layout.staging}/links/old{info.id}"
        former, path = (
            self.parts.layout.link_at(action.key),
            self.parts.link_place(transaction, attachment.key),
        )
        kernel.pin(fd, staged)
        transaction.on_undo(lambda: unlink(staged))
        note_netns(staged, attachment)
        self.parts.on_step(Step.COMMIT_LINK, attachment)
        if former == path:
            exchange(transaction, staged, path, aside)
        else:
            rename(staged, path)
            transaction.on_undo(lambda: rename(path, staged))
            rename(former, aside)
            transaction.on_undo(lambda: rename(aside, former))
            transaction.on_success(lambda: remove_empty(former, self.parts.layout.links))
        # The pin last: the kernel takes a link down later when its last pin goes, and at once, for
        # which a probe waits 0.1 s, when its last descriptor does.
        transaction.on_success(lambda: self.parts.held.drop_link(action.key))
        transaction.on_success(lambda: _unpin_old(attachment, aside))
        map_fd = self.parts.maps.opener(transaction, loaded)
        transaction.before_waiting(lambda: self._end_overlap(action, aside, map_fd, info))
        if attachment.key != action.key:
            self.parts.after.gone_links.add(action.key)
        self.parts.after.attached(attachment, fd)

    def _end_overlap(self, action: Swap, aside: str, map_fd: MapOpener, new: LinkInfo) -> None:
        """Detaches the old program while the new one is on trial, and would attach it again."""
        old = self._old_program_fd(action)
        self.parts.on_step(Step.DETACH, action.attachment)

        def attach_again() -> None:
            fd, _ = create_link(old, action.attachment, map_fd, Around(new))
            with kernel.holding(fd):
                kernel.pin(fd, aside)
                note_netns(aside, action.attachment)

        _unpin_old(action.attachment, aside)
        self.parts.held.drop_link(action.key)
        self.parts.reload.on_undo(attach_again)

    def _update(self, transaction: Transaction, action: Swap, loaded: Loaded) -> None:
        attachment = action.attachment
        program = new = self.parts.program_fd(transaction, action, loaded)
        if attachment.exact:
            new = self.parts.stubs.stub_fd(transaction, attachment, program)
        link = self._link_fd(transaction, action)
        old = self._old_program_fd(action)
        self.parts.on_step(Step.SWAP, attachment)
        _, gone, number = _swap_all([(link, new, old)])
        if number:
            raise _update_error(attachment, number)
        if gone:
            self._went_away(attachment)
        transaction.on_undo(lambda: _swap_back([(link, old, new)]))
        if attachment.hook.kind is HookKind.STRUCT_OPS:
            self.parts.after.attached(attachment, link)
        else:
            self.parts.after.swapped(action, program)
        self._take_over(transaction, action)

    def _went_away(self, attachment: Attachment) -> None:
        """A link that is dead has nothing to swap, and is no reason to undo what can be done."""
        self.parts.after.unsure = True
        self.parts.notes.append(
            f"{attachment}: its target went away, or the link was detached, during the reload"
        )

    def _link_fd(self, transaction: Transaction, action: Swap) -> int:
        """The link that is to be updated: held, or pinned."""
        link = self.parts.held.link_fd(action.key, action.link.id)
        if link is not None:
            return link
        opened = kernel.pinned(self.parts.layout.link_at(action.key), kernel.PinKind.LINK)
        if opened is None:
            raise KeeperError(f"the link of {action.attachment} went away: reload again")
        return transaction.close_later(opened)

    def _take_over(self, transaction: Transaction, action: Swap) -> None:
        """A link that was pinned for another program or object gets its new place."""
        attachment, layout = action.attachment, self.parts.layout
        if attachment.key == action.key:
            return
        self.parts.on_step(Step.COMMIT_LINK, attachment)
        if action.link.type == SOCKMAP_ATTACHED:
            source, path = layout.attached_at(action.key), layout.attached_at(attachment.key)
            make_parents(transaction, path, layout.own)
            top = layout.own
        else:
            top = layout.links
            source = layout.link_at(action.key)
            path = self.parts.link_place(transaction, attachment.key)
        rename(source, path)
        transaction.on_undo(lambda: rename(path, source))
        transaction.on_success(lambda: remove_empty(source, top))
        # Held under its former name, it would pass for a link that lost its pin.
        transaction.on_success(lambda: self.parts.held.drop_link(action.key))

    def _old_functions_fd(self, action: Swap) -> int:
        observed = self.parts.observed
        old = map_by_id(self.parts.layout, observed.maps, action.link.target_id)
        if old is None:
            raise KeeperError(f"the map of {action.attachment} went away: reload again")
        return self.parts.reload.close_later(old)

    def _old_program_fd(self, action: Swap) -> int:
        """The program that a link runs now, or the map that it registers: to compare with, and to
        swap back to until the reload is over."""
        if action.attachment.hook.kind is HookKind.STRUCT_OPS:
            return self._old_functions_fd(action)
        known = self.parts.observed.links.get(action.key)
        wanted = (known.stub if known else 0) or action.link.prog_id
        if wanted in self._old_programs:
            return self._old_programs[wanted]
        why = "it went away: reload again"
        try:
            fd = program_by_id(self.parts.layout, wanted)
        except KernelError as error:
            fd, why = None, errno_text(error.errno)
            if error.errno == errno.EPERM:
                why += ": it takes CAP_SYS_ADMIN"
        if fd is None:
            raise KeeperError(
                f"cannot open program ID {wanted}, which {action.attachment} runs now, to be able"
                f" to swap back: {why}"
            )
        self._old_programs[wanted] = self.parts.reload.close_later(fd)
        return fd


def _unpin_old(attachment: Attachment, path: str) -> None:
    if attachment.hook.kind is HookKind.NETFILTER:
        end_netfilter_link(path)
    unlink(path)


def is_plain_update(action: LinkAction) -> bool:
    """Whether an attachment's link is updated, and nothing else happens to it."""
    match action:
        case Swap(attachment):
            hook = attachment.hook
            plain = hook.rules.swap is SwapWay.UPDATE and hook.kind is not HookKind.STRUCT_OPS
            plain = plain and hook.name != LSM_CGROUP  # see `_update_or_overlap`
            # Of TCX it may be a filter, on a kernel without: no link, and its own way.
            has_link = action.link.type in hook.rules.link_types - {CLSACT_LINK}
            stays = attachment.key == action.key and has_link
            return plain and stays and not attachment.exact and action.stub is None
        case _:
            return False


def _swap_all(swaps: Sequence[tuple[int, int, int]]) -> tuple[int, list[int], int]:
    """Swaps up to the first one that fails: how many those are, which of them have a dead link, and
    the errno of the one that failed."""
    done, gone = 0, list[int]()
    while True:
        more, number = kernel.link_swap_all(swaps[done:])
        done += more
        if number != errno.ENOLINK:
            return done, gone, number
        gone.append(done)
        done += 1


def _way_back(
    swaps: Sequence[tuple[int, int, int]], dead: Sequence[int]
) -> list[tuple[int, int, int]]:
    """The swaps that undo others, but for those of dead links; the last one first."""
    alive = [swap for place, swap in enumerate(swaps) if place not in dead]
    return [(link, old, new) for link, new, old in reversed(alive)]


def _swap_back(swaps: Sequence[tuple[int, int, int]]) -> None:
    """All that can be; one that cannot does not keep the others from it."""
    left, failed, why = swaps, 0, 0
    while True:
        done, _, number = _swap_all(left)
        if not number:
            break
        failed, why, left = failed + 1, number, left[done + 1 :]
    if failed:
        raise KernelError(f"swap the program of {failed} of {len(swaps)} links back", why)


def _update_error(attachment: Attachment, number: int) -> KernelError:
    remedy = ""
    if number == errno.EPERM:
        remedy = "somebody else changed its program meanwhile: reload again"
    elif attachment.hook.kind is HookKind.STRUCT_OPS:
        remedy = "the kernel takes another version under the same name only"
    return KernelError(f"swap the program of {attachment}", number, remedy)
