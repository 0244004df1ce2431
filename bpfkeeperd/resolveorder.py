"""What attachments of several objects say of each other: the order at a hook, places that take one
program, and priorities of netfilter that would meet. Pure."""

from collections.abc import Iterator, Mapping

from bpfkeeperd.desired import Attachment, WantedObject, target_name
from bpfkeeperd.entries import Manifest
from bpfkeeperd.errors import Mark, Problem
from bpfkeeperd.hooks import PROG_TYPE_FLOW_DISSECTOR, Hook
from bpfkeeperd.ordering import ANY, circle, ordered_places
from bpfkeeperd.suggest import did_you_mean
from bpfkeeperd.targets import InterfaceTarget, NetfilterTarget


def order_problems(manifest: Manifest, objects: Mapping[str, WantedObject]) -> Iterator[Problem]:
    """Every mistake in them, with its place."""
    programs = {
        f"{name}/{program}"
        for name, entry in manifest.objects.items()
        for program in entry.programs
    }
    every = [each for wanted in objects.values() for each in wanted.attachments]
    for each in every:
        for word, other in (("before", each.before), ("after", each.after)):
            if "/" in other and other not in programs:
                message = f"{word} names {other}, which the manifest does not attach"
                yield Problem(_mark(manifest, each), message, did_you_mean(other, programs))
            elif other == f"{each.object}/{each.program}":
                message = f"a program cannot be {word} itself"
                yield Problem(_mark(manifest, each), message)
    for peers in ordered_places(every).values():
        around = circle(peers)
        if len(around) > 1:
            message = f"before and after go in a circle: {', '.join(around)}"
            first = next(peer for peer in peers if (peer.before or peer.after) not in ("", ANY))
            yield Problem(_mark(manifest, first), message, "leave one of them out")
    yield from _alone(manifest, [each for each in every if not objects[each.object].fault])
    yield from _priorities(manifest, every)


def _alone(manifest: Manifest, every: list[Attachment]) -> Iterator[Problem]:
    """Two programs at a place that takes one. Those that patterns bring together are known to the
    kernel alone."""
    seen: dict[tuple[Hook, str, str | None], Attachment] = {}
    for each in every:
        if not (each.hook.rules.exclusive or each.hook.prog_type == PROG_TYPE_FLOW_DISSECTOR):
            continue
        match each.target:
            case InterfaceTarget(name, netns):  # in whichever mode
                place = each.hook, name, netns
            case _:
                place = each.hook, target_name(each.target), None
        other = seen.setdefault(place, each)
        if other is not each:
            message = (
                f"{other.object}/{other.program} is attached at {each.hook.name} of"
                f" {target_name(other.target)} already, which takes one program"
            )
            yield Problem(_mark(manifest, each), message, "leave one of them out")


def _priorities(manifest: Manifest, every: list[Attachment]) -> Iterator[Problem]:
    """A program of netfilter has its priority alone, and takes the next one as it is swapped."""
    seen: dict[tuple[str, str, str | None], list[tuple[int, Attachment]]] = {}
    for each in every:
        match each.target:
            case NetfilterTarget(family, hook, priority, netns):
                there = seen.setdefault((family, hook, netns), [])
                near = [other for taken, other in there if abs(taken - priority) < 2]
                if near:
                    message = (
                        f"priority {priority} is too near to that of"
                        f" {near[0].object}/{near[0].program}"
                    )
                    remedy = (
                        "a program has its priority alone and needs the next one while it is"
                        " swapped: leave two between them"
                    )
                    yield Problem(_mark(manifest, each), message, remedy)
                there.append((priority, each))
            case _:
                pass


def _mark(manifest: Manifest, attachment: Attachment) -> Mark:
    entry = manifest.objects[attachment.object].programs[attachment.program]
    for attach in entry.attach:
        same = (attach.before, attach.after) == (attachment.before, attachment.after)
        if same and attach.target == attachment.target:
            return attach.mark
    return entry.mark
