"""What attaching and swapping have in common: the program, the link that runs it, its pin."""

from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.actions import LinkAction
from bpfkeeperd.adopt import Adoption
from bpfkeeperd.after import After
from bpfkeeperd.attach import create_link
from bpfkeeperd.attachnet import Around, note_netns
from bpfkeeperd.desired import Attachment
from bpfkeeperd.directories import exchange, make_directory, remove_empty, unlink
from bpfkeeperd.enactmaps import MapEnactor
from bpfkeeperd.enactstubs import StubEnactor
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.held import Held
from bpfkeeperd.hooks import HookKind
from bpfkeeperd.layout import Layout, LinkKey, escape
from bpfkeeperd.load import Loaded
from bpfkeeperd.observed import Observed
from bpfkeeperd.ordering import owners
from bpfkeeperd.steps import OnStep, Step
from bpfkeeperd.targets import MapTarget
from bpfkeeperd.transaction import Transaction


@dataclass(slots=True)
class LinkParts:
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
    adoption: Adoption = field(default_factory=Adoption)
    """Of the change that is being done."""

    def __post_init__(self) -> None:
        self.stubs = StubEnactor(self.layout, self.observed, self.on_step, self.after, self.notes)

    def program_fd(self, transaction: Transaction, action: LinkAction, loaded: Loaded) -> int:
        """The program to attach: the one just loaded, or the one that is pinned."""
        attachment = action.attachment
        adopted = self.adoption.fd(attachment.object, attachment.program)
        if adopted:
            return adopted
        opened = loaded.objects.get(attachment.object)
        if attachment.hook.kind is HookKind.STRUCT_OPS:
            return self.functions_fd(transaction, attachment, loaded)
        if opened:
            return opened.program_fd(attachment.program)
        directory = self.layout.programs(attachment.object, action.digest)
        path = f"{directory}/{escape(attachment.program)}"
        fd = kernel.pinned(path, kernel.PinKind.PROGRAM)
        if fd is None:
            raise KeeperError(f"cannot attach {attachment}: its program is not pinned any more")
        return transaction.close_later(fd)

    def functions_fd(self, transaction: Transaction, attachment: Attachment, loaded: Loaded) -> int:
        """The struct_ops map to register, with the programs in it."""
        opened = loaded.objects.get(attachment.object)
        if opened:
            opened.fill_struct_ops(attachment.program)
        assert isinstance(attachment.target, MapTarget)
        return self.maps.opener(transaction, loaded)(attachment.target.name)

    def create_link(
        self, transaction: Transaction, action: LinkAction, loaded: Loaded, around: Around
    ) -> tuple[int, str]:
        """A link that runs the program, or the stub that calls it; see `attach.create_link`."""
        attachment, fd = action.attachment, self.program_fd(transaction, action, loaded)
        if attachment.exact:
            fd = self.stubs.stub_fd(transaction, attachment, fd)
        return create_link(fd, attachment, self.maps.opener(transaction, loaded), around)

    def pin_link(self, transaction: Transaction, attachment: Attachment, fd: int) -> None:
        key = attachment.key
        path = self.link_place(transaction, key)
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

    def link_place(self, transaction: Transaction, key: LinkKey) -> str:
        """The path of a link's pin, with the directories above it."""
        make_link_directory(self.layout, key)
        path = self.layout.link_at(key)
        transaction.on_undo(lambda: remove_empty(path, self.layout.links))
        return path

    def owners(self, peers: tuple[Attachment, ...]) -> dict[int, Attachment]:
        return owners(peers, {**self.observed.links, **self.after.links})


def make_link_directory(layout: Layout, key: LinkKey) -> None:
    make_directory(f"{layout.links}/{key[0]}")
    make_directory(f"{layout.links}/{key[0]}/{key[1]}")
