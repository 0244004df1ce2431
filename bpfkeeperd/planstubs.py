"""Which links stay on their stubs, and which stubs nothing runs any more. Pure."""

from collections.abc import Collection, Iterator

from bpfkeeperd.actions import Attach, RemoveStub, RestoreStub, Swap
from bpfkeeperd.desired import Attachment
from bpfkeeperd.draft import Draft
from bpfkeeperd.layout import LinkKey, StubKey, escape
from bpfkeeperd.observed import ObservedLink


def behind_stub(
    draft: Draft, attachment: Attachment, link_key: LinkKey, link: ObservedLink
) -> StubKey | None:
    """The stub that a link runs, where an attachment can go on with it: its own, or that of the
    program whose link it takes over."""
    if not attachment.exact or not link.stub:
        return None
    own, former, stubs = attachment.key[:2], link_key[:2], draft.observed.stubs
    for key in (own, former):
        if key in stubs and stubs[key].prog_id == link.stub:
            return key if key == own or own not in stubs else None
    return None


def wanted_stubs(draft: Draft) -> set[StubKey]:
    return {
        attachment.key[:2]
        for wanted in draft.desired.objects.values()
        for attachment in wanted.attachments
        if attachment.exact
    }


def restore_stubs(draft: Draft) -> None:
    """Stubs whose pins are gone and that are alive get them again: those that are wanted, taken
    over under another name, or of an object that is held back. The array of one that loses its last
    pin is emptied."""
    swaps = (one for actions in draft.links.values() for one in actions if isinstance(one, Swap))
    wanted = wanted_stubs(draft) | {swap.stub for swap in swaps}
    held = {escape(name) for name in (*draft.held_objects, *draft.desired.faults)}
    for key, stub in draft.observed.stubs.items():
        if stub.prog_id and not stub.pinned and (key in wanted or key[0] in held):
            draft.restores.append(RestoreStub(key))


def unwanted_stubs(draft: Draft, detached: Collection[LinkKey]) -> Iterator[RemoveStub]:
    """Those that nothing runs when all that is planned is done."""
    actions = [action for actions in draft.links.values() for action in actions]
    swaps = [action for action in actions if isinstance(action, Swap)]
    # Where an attachment is made anew or takes over a link, the one that had its name goes.
    renewed = {
        action.attachment.key
        for action in actions
        if isinstance(action, Swap) or (isinstance(action, Attach) and not action.sole)
    }
    moved = {action.key for action in swaps} | renewed
    taken = {action.stub for action in swaps}
    run = {
        link.stub
        for key, link in draft.observed.links.items()
        if key not in moved and key not in detached
    }
    untouchable = {escape(name) for name in (*draft.held_objects, *draft.desired.faults)}
    names = {escape(name) for name in draft.desired.objects}
    wanted = wanted_stubs(draft) | taken
    for key, stub in draft.observed.stubs.items():
        if key in wanted or key[0] in untouchable or (stub.prog_id and stub.prog_id in run):
            continue
        reason = "not used any more" if key[0] in names else "not in the manifest any more"
        yield RemoveStub(key, reason)


def leaving(draft: Draft, key: StubKey) -> set[str]:
    """Objects whose programs take over links that run a stub, which does not go along."""
    return {
        action.attachment.object
        for actions in draft.links.values()
        for action in actions
        if isinstance(action, Swap)
        and action.stub is None
        and draft.observed.links[action.key].stub == draft.observed.stubs[key].prog_id != 0
    }
