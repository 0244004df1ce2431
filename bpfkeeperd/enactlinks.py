"""Programs are attached, adopted and take the place of others, each with the way back."""

import errno
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.actions import Attach, Displace, LinkAction, Refusal
from bpfkeeperd.attachnet import Around, order_at
from bpfkeeperd.desired import Attachment
from bpfkeeperd.enactfilter import FilterEnactor, is_filter
from bpfkeeperd.errors import KernelError
from bpfkeeperd.foreign import beside_text, refusal
from bpfkeeperd.hooks import HookKind
from bpfkeeperd.layout import LinkKey
from bpfkeeperd.linkparts import LinkParts
from bpfkeeperd.load import Loaded
from bpfkeeperd.mapattached import attach_to_map
from bpfkeeperd.observed import Foreign
from bpfkeeperd.ordering import place_of_hook
from bpfkeeperd.steps import Step
from bpfkeeperd.takeover import ADOPTED, detach_first, detach_last, open_link, swap_in
from bpfkeeperd.targets import MapTarget
from bpfkeeperd.transaction import Transaction


@dataclass(slots=True)
class LinkEnactor:
    """Attaches."""

    parts: LinkParts
    filters: FilterEnactor
    refused: dict[LinkAction, Refusal] = field(default_factory=dict)
    """Attachments that turned out not to be possible beside those of others."""
    adopted: dict[LinkKey, int] = field(default_factory=dict)
    """Attachments that are links of others, by their IDs."""

    def attach(self, transaction: Transaction, action: Attach, loaded: Loaded) -> None:
        """Attaches, or keeps or takes the place of what somebody else attached."""
        attachment = action.attachment
        adopted = self.parts.adoption.takes(action)
        if adopted and self.parts.adoption.claim(adopted):
            self._adopt(transaction, attachment, adopted)
        elif action.sole and not action.displaced:
            others = self.parts.observed.foreign.get(attachment.key, ())
            refused = refusal(attachment, others)
            transaction.on_success(lambda: self.refused.__setitem__(action, refused))
            return
        else:
            adopted = None
            self._take_place(transaction, action, loaded)
        for other in action.displaced:
            if other is not adopted and not self._is_displaced(action, other):
                self.parts.on_step(Step.TAKE_OVER, attachment)
                detach_last(transaction, attachment, other, self.parts.notes)
        if action.peers:
            self.parts.after.orders[place_of_hook(attachment)] = order_at(attachment)

    def _adopt(self, transaction: Transaction, attachment: Attachment, other: Foreign) -> None:
        self.parts.on_step(Step.ADOPT, attachment)
        fd = open_link(transaction, other)
        self.parts.pin_link(transaction, attachment, fd)
        link_id = kernel.link_info(fd).id
        note = f"{attachment}: adopted {other}, which goes on as it is; {ADOPTED}"

        def settle() -> None:
            self.adopted[attachment.key] = link_id
            self.parts.notes.append(note)

        transaction.on_success(settle)

    def _take_place(self, transaction: Transaction, action: Attach, loaded: Loaded) -> None:
        """Attaches ours, with or without the link of somebody else."""
        attachment = action.attachment
        for other in action.displaced:
            if self._is_displaced(action, other):
                self.parts.on_step(Step.TAKE_OVER, attachment)
                if other.link:
                    program = self.parts.program_fd(transaction, action, loaded)
                    self.parts.pin_link(
                        transaction, attachment, swap_in(transaction, other, program)
                    )
                    return
                detach_first(transaction, attachment, other)
        if action.adopt and action.adopt not in action.displaced:
            note = f"{attachment}: {beside_text(action.adopt)}"
            transaction.on_success(lambda: self.parts.notes.append(note))
        self._attach_new(transaction, action, loaded)

    def displace(self, transaction: Transaction, action: Displace) -> None:
        """Detaches what others have beside ours."""
        for other in action.others:
            self.parts.on_step(Step.TAKE_OVER, action.attachment)
            detach_last(transaction, action.attachment, other, self.parts.notes)

    def _is_displaced(self, action: Attach, other: Foreign) -> bool:
        """Whether another goes as ours comes: the first link, and what must go before."""
        links = [one for one in action.displaced if one.link]
        return bool(other is links[0]) if other.link else other.sole

    def _attach_new(self, transaction: Transaction, action: Attach, loaded: Loaded) -> None:
        attachment = action.attachment
        if is_filter(attachment):
            program = self.parts.program_fd(transaction, action, loaded)
            known = self.parts.observed.links.get(attachment.key)
            self.filters.attach(transaction, attachment, program, known)
            return
        self.parts.on_step(Step.ATTACH, attachment)
        around = Around(None, action.peers, self.parts.owners(action.peers))
        try:
            fd, note = self.parts.create_link(transaction, action, loaded, around)
        except KernelError as error:
            if attachment.hook.kind is not HookKind.SOCKMAP or error.errno != errno.EINVAL:
                raise
            self._attach_to_map(transaction, action, loaded)
            return
        transaction.close_later(fd)
        if action.sole:  # theirs cannot come back as long as ours is there
            transaction.on_undo(lambda: kernel.link_detach(fd))
        if note:
            self.parts.notes.append(note)
        self.parts.pin_link(transaction, attachment, fd)

    def _attach_to_map(self, transaction: Transaction, action: Attach, loaded: Loaded) -> None:
        """As kernels before 6.10 do, which make no link to a map."""
        attachment = action.attachment
        assert isinstance(attachment.target, MapTarget)
        program = self.parts.program_fd(transaction, action, loaded)
        stub = self.parts.stubs.stub_fd(transaction, attachment, program)
        map_fd = self.parts.maps.opener(transaction, loaded)(attachment.target.name)
        info = attach_to_map(transaction, self.parts.layout, attachment, stub, map_fd)
        self.parts.after.recorded(attachment.key, info)
