"""Programs are attached, swapped and taken over, each with the way back."""

import errno
import os
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.actions import Attach, Displace, LinkAction, Refusal, Swap
from bpfkeeperd.adopt import Adoption
from bpfkeeperd.after import After
from bpfkeeperd.attach import MapOpener, create_link
from bpfkeeperd.attachnet import Around, note_netns, order_at
from bpfkeeperd.desired import Attachment
from bpfkeeperd.directories import exchange, make_directory, make_parents, remove_empty, unlink
from bpfkeeperd.enactfilter import FilterEnactor, is_filter
from bpfkeeperd.enactmaps import MapEnactor
from bpfkeeperd.enactstubs import StubEnactor
from bpfkeeperd.errors import KeeperError, KernelError, error_text
from bpfkeeperd.foreign import beside_text, refusal
from bpfkeeperd.held import Held
from bpfkeeperd.hooks import CLSACT_LINK, SOCKMAP_ATTACHED, HookKind, SwapWay
from bpfkeeperd.layout import Layout, LinkKey, escape
from bpfkeeperd.load import Loaded
from bpfkeeperd.mapattached import attach_to_map
from bpfkeeperd.observed import Foreign, Observed
from bpfkeeperd.ordering import owners, place_of_hook
from bpfkeeperd.state import LinkInfo
from bpfkeeperd.steps import OnStep, Step
from bpfkeeperd.takeover import ADOPTED, detach_first, detach_last, open_link, swap_in
from bpfkeeperd.targets import MapTarget
from bpfkeeperd.transaction import Transaction


class SwapError(KeeperError):
    """A program could not be swapped: nothing of the reload may remain."""


@dataclass(slots=True)
class LinkEnactor:
    """What attachments need."""

    layout: Layout
    observed: Observed
    held: Held
    on_step: OnStep
    after: After
    notes: list[str]
    reload: Transaction
    maps: MapEnactor
    stubs: StubEnactor = field(init=False)
    filters: FilterEnactor = field(init=False)
    adoption: Adoption = field(default_factory=Adoption)
    """Of the change that is being done."""
    refused: dict[LinkAction, Refusal] = field(default_factory=dict)
    """Attachments that turned out not to be possible beside those of others."""
    adopted: dict[LinkKey, int] = field(default_factory=dict)
    """Attachments that are links of others, by their IDs."""
    swaps: int = 0
    """How many swaps the whole reload has."""
    tried: int = 0
    swapped: int = 0
    """And not undone."""
    _old_programs: dict[int, int] = field(default_factory=dict)
    """By their ID: many links may run the same one."""

    def __post_init__(self) -> None:
        self.stubs = StubEnactor(self.layout, self.observed, self.on_step, self.after, self.notes)
        self.filters = FilterEnactor(self.layout, self.on_step, self.after, self.notes)

    def enact(self, transaction: Transaction, action: LinkAction, loaded: Loaded) -> None:
        """Does what there is to do for an attachment.

        Raises:
            SwapError: a swap failed.
            KeeperError: something else did.
        """
        match action:
            case Attach():
                self._attach(transaction, action, loaded)
            case Swap():
                self._swap(transaction, action, loaded)
            case Displace(attachment, _, others):
                for other in others:
                    self.on_step(Step.TAKE_OVER, attachment)
                    detach_last(transaction, attachment, other, self.notes)

    def _program_fd(self, transaction: Transaction, action: LinkAction, loaded: Loaded) -> int:
        """The program to attach: the one just loaded, or the one that is pinned."""
        attachment = action.attachment
        adopted = self.adoption.fd(attachment.object, attachment.program)
        if adopted:
            return adopted
        opened = loaded.objects.get(attachment.object)
        if attachment.hook.kind is HookKind.STRUCT_OPS:
            return self._functions_fd(transaction, attachment, loaded)
        if opened:
            return opened.program_fd(attachment.program)
        directory = self.layout.programs(attachment.object, action.digest)
        path = f"{directory}/{escape(attachment.program)}"
        fd = kernel.pinned(path, kernel.PinKind.PROGRAM)
        if fd is None:
            raise KeeperError(f"cannot attach {attachment}: its program is not pinned any more")
        return transaction.close_later(fd)

    def _functions_fd(
        self, transaction: Transaction, attachment: Attachment, loaded: Loaded
    ) -> int:
        """The struct_ops map to register, with the programs in it."""
        opened = loaded.objects.get(attachment.object)
        if opened:
            opened.fill_struct_ops(attachment.program)
        assert isinstance(attachment.target, MapTarget)
        return self.maps.opener(transaction, loaded)(attachment.target.name)

    def _create_link(
        self, transaction: Transaction, action: LinkAction, loaded: Loaded, around: Around
    ) -> tuple[int, str]:
        """A link that runs the program, or the stub that calls it; see `attach.create_link`."""
        attachment, fd = action.attachment, self._program_fd(transaction, action, loaded)
        if attachment.exact:
            fd = self.stubs.stub_fd(transaction, attachment, fd)
        return create_link(fd, attachment, self.maps.opener(transaction, loaded), around)

    def _attach(self, transaction: Transaction, action: Attach, loaded: Loaded) -> None:
        """Attaches, or keeps or takes the place of what somebody else attached."""
        attachment = action.attachment
        adopted = self.adoption.takes(action)
        if adopted and self.adoption.claim(adopted):
            self._adopt(transaction, attachment, adopted)
        elif action.sole and not action.displaced:
            others = self.observed.foreign.get(attachment.key, ())
            refused = refusal(attachment, others)
            transaction.on_success(lambda: self.refused.__setitem__(action, refused))
            return
        else:
            adopted = None
            self._take_place(transaction, action, loaded)
        for other in action.displaced:
            if other is not adopted and not self._is_displaced(action, other):
                self.on_step(Step.TAKE_OVER, attachment)
                detach_last(transaction, attachment, other, self.notes)
        if action.peers:
            self.after.orders[place_of_hook(attachment)] = order_at(attachment)

    def _adopt(self, transaction: Transaction, attachment: Attachment, other: Foreign) -> None:
        self.on_step(Step.ADOPT, attachment)
        fd = open_link(transaction, other)
        self._pin_link(transaction, attachment, fd)
        link_id = kernel.link_info(fd).id
        note = f"{attachment}: adopted {other}, which goes on as it is; {ADOPTED}"

        def settle() -> None:
            self.adopted[attachment.key] = link_id
            self.notes.append(note)

        transaction.on_success(settle)

    def _take_place(self, transaction: Transaction, action: Attach, loaded: Loaded) -> None:
        """Attaches ours, with or without the link of somebody else."""
        attachment = action.attachment
        for other in action.displaced:
            if self._is_displaced(action, other):
                self.on_step(Step.TAKE_OVER, attachment)
                if other.link:
                    program = self._program_fd(transaction, action, loaded)
                    self._pin_link(transaction, attachment, swap_in(transaction, other, program))
                    return
                detach_first(transaction, attachment, other)
        if action.adopt and action.adopt not in action.displaced:
            note = f"{attachment}: {beside_text(action.adopt)}"
            transaction.on_success(lambda: self.notes.append(note))
        self._attach_new(transaction, action, loaded)

    def _is_displaced(self, action: Attach, other: Foreign) -> bool:
        """Whether another goes as ours comes: the first link, and what must go before."""
        links = [one for one in action.displaced if one.link]
        return bool(other is links[0]) if other.link else other.sole

    def _attach_new(self, transaction: Transaction, action: Attach, loaded: Loaded) -> None:
        attachment = action.attachment
        if is_filter(attachment):
            program = self._program_fd(transaction, action, loaded)
            known = self.observed.links.get(attachment.key)
            self.filters.attach(transaction, attachment, program, known)
            return
        self.on_step(Step.ATTACH, attachment)
        around = Around(None, action.peers, self._owners(action.peers))
        try:
            fd, note = self._create_link(transaction, action, loaded, around)
        except KernelError as error:
            if attachment.hook.kind is not HookKind.SOCKMAP or error.errno != errno.EINVAL:
                raise
            self._attach_to_map(transaction, action, loaded)
            return
        transaction.close_later(fd)
        if action.sole:  # theirs cannot come back as long as ours is there
            transaction.on_undo(lambda: kernel.link_detach(fd))
        if note:
            self.notes.append(note)
        self._pin_link(transaction, attachment, fd)

    def _pin_link(self, transaction: Transaction, attachment: Attachment, fd: int) -> None:
        key = attachment.key
        path = self._link_place(transaction, key)
        known = self.observed.links.get(key)
        if known and known.pinned:  # a dead link's pin stands there
            number = kernel.link_info(fd).id
            staged = f"{self.layout.staging}/links/new{number}"
            aside = f"{self.layout.staging}/links/old{number}"
            kernel.pin(fd, staged)
            transaction.on_undo(lambda: unlink(staged))
            note_netns(staged, attachment)
            self.on_step(Step.COMMIT_LINK, attachment)
            exchange(transaction, staged, path, aside)
        else:
            kernel.pin(fd, path)
            transaction.on_undo(lambda: unlink(path))
            note_netns(path, attachment)
        self.after.attached(attachment, fd)

    def _owners(self, peers: tuple[Attachment, ...]) -> dict[int, Attachment]:
        return owners(peers, {**self.observed.links, **self.after.links})

    def _attach_to_map(self, transaction: Transaction, action: Attach, loaded: Loaded) -> None:
        """As kernels before 6.10 do, which make no link to a map."""
        attachment = action.attachment
        assert isinstance(attachment.target, MapTarget)
        program = self._program_fd(transaction, action, loaded)
        stub = self.stubs.stub_fd(transaction, attachment, program)
        map_fd = self.maps.opener(transaction, loaded)(attachment.target.name)
        info = attach_to_map(transaction, self.layout, attachment, stub, map_fd)
        self.after.recorded(attachment.key, info)

    def _swap(self, transaction: Transaction, action: Swap, loaded: Loaded) -> None:
        """A swap, of which a failure tells how far the reload had come."""
        self.tried += 1
        try:
            self._exchange(transaction, action, loaded)
        except (KeeperError, OSError) as error:
            before = ""
            if self.swapped:
                were = "was" if self.swapped == 1 else "were"
                before = f"; the {self.swapped} swapped before {were} swapped back"
            raise SwapError(
                f"{loaded.change.subject}: swap {self.tried} of {self.swaps} failed:"
                f" {error_text(error)}{before}; nothing of this reload remains: what ran before"
                " goes on running"
            ) from None
        self.swapped += 1

    def _exchange(self, transaction: Transaction, action: Swap, loaded: Loaded) -> None:
        attachment = action.attachment
        if action.link.type == CLSACT_LINK:
            new = self._program_fd(transaction, action, loaded)
            old = self._old_program_fd(action)
            self.filters.swap(transaction, action, new, old)
            return
        if action.stub:
            new = self._program_fd(transaction, action, loaded)
            if self.stubs.swap(transaction, attachment, action.stub, new):
                self.after.swapped(action, new)
                self._take_over(transaction, action)
                return
            self.notes.append(
                f"{attachment} gets a new stub, beside the former one for a moment: that cannot"
                " call a program of another kind"
            )
        match attachment.hook.rules.swap:
            case SwapWay.UPDATE:
                self._update(transaction, action, loaded)
            case SwapWay.OVERLAP:
                self._overlap(transaction, action, loaded)
            case SwapWay.STUB:
                self.notes.append(
                    f"{attachment} was not behind its stub: sockets that are in the map go on"
                    " with the former program, those that come get the new one"
                )
                self._update(transaction, action, loaded)
            case SwapWay.REPLACE:
                raise KeeperError(f"cannot swap the program of {action.attachment}")

    def _overlap(self, transaction: Transaction, action: Swap, loaded: Loaded) -> None:
        """Attaches the new program beside the old one, which goes when nothing can fail any more:
        for that moment both run."""
        attachment = action.attachment
        self.on_step(Step.SWAP, attachment)
        fd, note = self._create_link(transaction, action, loaded, Around(action.link))
        transaction.close_later(fd)
        if note:
            self.notes.append(note)
        info = kernel.link_info(fd)
        staged = f"{self.layout.staging}/links/new{info.id}"
        aside = f"{self.layout.staging}/links/old{info.id}"
        former, path = (
            self.layout.link_at(action.key),
            self._link_place(transaction, attachment.key),
        )
        kernel.pin(fd, staged)
        transaction.on_undo(lambda: unlink(staged))
        note_netns(staged, attachment)
        self.on_step(Step.COMMIT_LINK, attachment)
        if former == path:
            exchange(transaction, staged, path, aside)
        else:
            os.rename(staged, path)
            transaction.on_undo(lambda: os.rename(path, staged))
            os.rename(former, aside)
            transaction.on_undo(lambda: os.rename(aside, former))
            transaction.on_success(lambda: remove_empty(former, self.layout.links))
        # The pin last: the kernel takes a link down later when its last pin goes, and at once, for
        # which a probe waits 0.1 s, when its last descriptor does.
        transaction.on_success(lambda: self.held.drop_link(action.key))
        transaction.on_success(lambda: unlink(aside))
        map_fd = self.maps.opener(transaction, loaded)
        transaction.before_waiting(lambda: self._end_overlap(action, aside, map_fd, info))
        if attachment.key != action.key:
            self.after.gone_links.add(action.key)
        self.after.attached(attachment, fd)

    def _end_overlap(self, action: Swap, aside: str, map_fd: MapOpener, new: LinkInfo) -> None:
        """Detaches the old program while the new one is on trial, and would attach it again."""
        old = self._old_program_fd(action)
        self.on_step(Step.DETACH, action.attachment)

        def attach_again() -> None:
            fd, _ = create_link(old, action.attachment, map_fd, Around(new))
            with kernel.holding(fd):
                kernel.pin(fd, aside)
                note_netns(aside, action.attachment)

        unlink(aside)
        self.held.drop_link(action.key)
        self.reload.on_undo(attach_again)

    def _update(self, transaction: Transaction, action: Swap, loaded: Loaded) -> None:
        attachment = action.attachment
        program = new = self._program_fd(transaction, action, loaded)
        if attachment.exact:
            new = self.stubs.stub_fd(transaction, attachment, program)
        link = self.held.link_fd(action.key, action.link.id)
        if link is None:
            opened = kernel.pinned(self.layout.link_at(action.key), kernel.PinKind.LINK)
            if opened is None:
                raise KeeperError(f"the link of {attachment} went away: reload again")
            link = transaction.close_later(opened)
        old = self._old_program_fd(action)
        self.on_step(Step.SWAP, attachment)
        try:
            kernel.link_update(link, new, old)
        except KernelError as error:
            remedy = ""
            if error.errno == errno.EPERM:
                remedy = "somebody else changed its program meanwhile: reload again"
            elif attachment.hook.kind is HookKind.STRUCT_OPS:
                remedy = "the kernel takes another version under the same name only"
            raise KernelError(f"swap the program of {attachment}", error.errno, remedy) from None
        transaction.on_undo(lambda: kernel.link_update(link, old, new))
        if attachment.hook.kind is HookKind.STRUCT_OPS:
            self.after.attached(attachment, link)
        else:
            self.after.swapped(action, program)
        self._take_over(transaction, action)

    def _take_over(self, transaction: Transaction, action: Swap) -> None:
        """A link that was pinned for another program or object gets its new place."""
        attachment = action.attachment
        if attachment.key == action.key:
            return
        self.on_step(Step.COMMIT_LINK, attachment)
        if action.link.type == SOCKMAP_ATTACHED:
            source, path = (self.layout.attached_at(key) for key in (action.key, attachment.key))
            make_parents(transaction, path, self.layout.own)
            top = self.layout.own
        else:
            top = self.layout.links
            source = self.layout.link_at(action.key)
            path = self._link_place(transaction, attachment.key)
        os.rename(source, path)
        transaction.on_undo(lambda: os.rename(path, source))
        transaction.on_success(lambda: remove_empty(source, top))
        # Held under its former name, it would pass for a link that lost its pin.
        transaction.on_success(lambda: self.held.drop_link(action.key))

    def _link_place(self, transaction: Transaction, key: LinkKey) -> str:
        """The path of a link's pin, with the directories above it."""
        make_link_directory(self.layout, key)
        path = self.layout.link_at(key)
        transaction.on_undo(lambda: remove_empty(path, self.layout.links))
        return path

    def _old_functions_fd(self, action: Swap) -> int:
        old = kernel.map_by_id(action.link.target_id)
        if old is None:
            raise KeeperError(f"the map of {action.attachment} went away: reload again")
        return self.reload.close_later(old)

    def _old_program_fd(self, action: Swap) -> int:
        """The program that a link runs now, or the map that it registers: to compare with, and to
        swap back to until the reload is over."""
        if action.attachment.hook.kind is HookKind.STRUCT_OPS:
            return self._old_functions_fd(action)
        known = self.observed.links.get(action.key)
        wanted = (known.stub if known else 0) or action.link.prog_id
        if wanted in self._old_programs:
            return self._old_programs[wanted]
        try:
            fd = kernel.program_by_id(wanted)
        except KernelError:  # EPERM without CAP_SYS_ADMIN: it is pinned too, if it is ours
            fd = None
            for object_name, digests in self.observed.programs.items():
                for digest, programs in digests.items():
                    for name, info in programs.items():
                        if info.id == wanted:
                            path = f"{self.layout.objects}/{object_name}/{digest}/{name}"
                            fd = kernel.pinned(path, kernel.PinKind.PROGRAM)
        if fd is None:
            raise KeeperError(
                f"cannot open program ID {wanted}, which {action.attachment} runs now, to be able"
                " to swap back: it takes CAP_SYS_ADMIN"
            )
        self._old_programs[wanted] = self.reload.close_later(fd)
        return fd


def make_link_directory(layout: Layout, key: LinkKey) -> None:
    make_directory(f"{layout.links}/{key[0]}")
    make_directory(f"{layout.links}/{key[0]}/{key[1]}")
