"""What somebody else attached where the manifest wants a program: whether it is the same and is
adopted, goes on beside ours, is taken over, or stands in the way. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from bpfkeeperd.actions import Attach, Displace, Refusal
from bpfkeeperd.desired import Attachment
from bpfkeeperd.draft import Draft
from bpfkeeperd.hooks import HookKind, SwapWay
from bpfkeeperd.observed import Foreign, Observed
from bpfkeeperd.state import ProgramInfo
from bpfkeeperd.targets import InterfaceTarget, XdpMode

KERNEL_NAME_MAX = 15

SameMap = Callable[[int, int], bool]
"""Whether two maps, by their IDs, are declared alike (and hold the same, if they are constant)."""


def is_alike(attachment: Attachment, program: ProgramInfo) -> bool:
    """Whether a program may be a copy of the wanted one: it has its name and type."""
    hook = attachment.hook
    return (program.name, program.type) == (attachment.program[:KERNEL_NAME_MAX], hook.prog_type)


def beside(observed: Observed, attachment: Attachment) -> list[Foreign]:
    """Those that are likely copies, at a place that takes several programs: all of them run."""
    return [
        other
        for other in observed.foreign.get(attachment.key, ())
        if not other.sole and is_alike(attachment, other.program)
    ]


def beside_text(other: Foreign) -> str:
    return f"{other} is attached there too, under the same name: both run"


def decide(draft: Draft, attach: Attach, running: ProgramInfo | None) -> Attach | None:
    """What becomes of an attachment where there may be others; None: it is refused.

    ``running`` is the wanted program where it need not be loaded.
    """
    attachment = attach.attachment
    others = draft.observed.foreign.get(attachment.key, ())
    others = tuple(other for other in others if _number(other) not in draft.taken_foreign)
    if not others:
        return attach
    alike = [other for other in others if is_alike(attachment, other.program)]
    sole = any(other.sole for other in others)
    fault = _mode_fault(attachment, others)
    adopt = next((other for other in alike if _may_adopt(draft, attachment, other, running)), None)
    displaced: tuple[Foreign, ...] = ()
    if attachment.take_over:
        in_the_way = others if sole else alike
        displaced = tuple(other for other in in_the_way if not hindrance(attachment, other))
    if sole and not fault and not adopt and displaced != others:
        fault = "; ".join(_in_the_way(attachment, other) for other in others)
    if fault:
        draft.refusals.append(Refusal("attachment", str(attachment), fault, foreign=True))
        return None
    draft.taken_foreign |= {_number(other) for other in displaced}
    # Ours comes in the place of the first link: where that is kept, the others go all the same.
    displaced = tuple(sorted(displaced, key=lambda other: other is not adopt))
    return replace(attach, adopt=adopt, displaced=displaced, sole=sole)


def displace(draft: Draft, attachment: Attachment, digest: str) -> Displace | None:
    """What has to go where ours is attached already, or is about to be without their help."""
    if not attachment.take_over:
        return None
    others = tuple(
        other
        for other in beside(draft.observed, attachment)
        if not hindrance(attachment, other) and _number(other) not in draft.taken_foreign
    )
    draft.taken_foreign |= {_number(other) for other in others}
    return Displace(attachment, digest, others) if others else None


def hindrance(attachment: Attachment, other: Foreign) -> str:
    """Why a foreign program cannot be taken over; empty where it can."""
    kind = attachment.hook.kind
    if attachment.exact or kind is HookKind.SOCKMAP:
        return (
            "it cannot be taken over, because sockets that are in the map would go on with its"
            " program: detach it first"
            if kind is HookKind.SOCKMAP
            else "it cannot be exchanged for a stub: have its loader detach it"
        )
    if other.link is None or attachment.hook.rules.swap is SwapWay.UPDATE:
        return ""
    return (
        "it cannot be taken over, because the kernel lets nobody else detach it: end the process"
        " that holds it, or remove its pin"
    )


def refusal(attachment: Attachment, others: Iterable[Foreign]) -> Refusal:
    """Of an attachment whose place another program has."""
    reason = "; ".join(_in_the_way(attachment, other) for other in others)
    return Refusal("attachment", str(attachment), reason, foreign=True)


def corresponding(
    ours: ProgramInfo, theirs: ProgramInfo, kept: frozenset[int], same_map: SameMap
) -> Mapping[int, int] | None:
    """Our maps that are not kept, each with the one in its place in theirs; None where the two are
    not the same program.

    The tag says that the instructions are the same, and then both use their maps in the same
    order; it says nothing of the maps, nor of what constant ones hold.
    """
    if ours.id == theirs.id:
        return {}
    if (ours.type, ours.name, ours.tag) != (theirs.type, theirs.name, theirs.tag):
        return None
    if len(ours.map_ids) != len(theirs.map_ids):
        return None
    pairs: dict[int, int] = {}
    for our_map, their_map in zip(ours.map_ids, theirs.map_ids, strict=True):
        if our_map == their_map:
            continue
        if our_map in kept or pairs.setdefault(our_map, their_map) != their_map:
            return None
        if not same_map(our_map, their_map):
            return None
    return pairs


def _number(other: Foreign) -> tuple[int, int]:
    return (other.link.id if other.link else 0, other.program.id)


def _may_adopt(
    draft: Draft, attachment: Attachment, other: Foreign, running: ProgramInfo | None
) -> bool:
    """Whether it is the same program, or may turn out to be when ours is loaded."""
    if other.link is None or attachment.exact:
        return False
    if running and other.program.id == running.id:
        return True
    if attachment.object in draft.held_objects or _is_content(draft, attachment):
        return False
    if running is None:
        return True
    in_use = any(link.info.prog_id == running.id for link in draft.observed.links.values())
    return other.same and not in_use


def _is_content(draft: Draft, attachment: Attachment) -> bool:
    """Whether a map has the program as an entry: ours is in it before anything is attached."""
    programs = (
        content.program for wanted in draft.desired.maps.values() for content in wanted.contents
    )
    return (attachment.object, attachment.program) in (
        (one.object, one.program) for one in programs if one
    )


def _mode_fault(attachment: Attachment, others: tuple[Foreign, ...]) -> str:
    """XDP: a link cannot change its mode, and the interface has one at a time."""
    match attachment.target:
        case InterfaceTarget(mode=mode) if mode is not XdpMode.AUTO:
            wants_generic = mode is XdpMode.GENERIC
        case _:
            return ""
    for other in others:
        if other.link and other.generic is not wants_generic:
            runs = "generic" if other.generic else "native"
            return (
                f"{other} runs there in {runs} mode, and an interface has one mode at a time:"
                f" have its loader detach it, or write mode: {runs}"
            )
    return ""


def _in_the_way(attachment: Attachment, other: Foreign) -> str:
    program = other.program
    how = f"link ID {other.link.id}" if other.link else "without a link"
    if other.unclear:
        how = "by a link that cannot be told from others"
    what = f"program ID {program.id} ({program.name}, tag {program.tag})"
    remedy = hindrance(attachment, other) or "take_over: true would replace it"
    if attachment.take_over and other.unclear:
        remedy = "detach it first"
    return f"{what} of somebody else is attached there ({how}), and nothing is changed: {remedy}"
