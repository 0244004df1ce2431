"""The order of programs that share a hook of an interface (TCX, netkit). Pure.

The manifest says of a program which one it runs before or after. That holds for both of them: where
the other one comes later, it takes its place in front of the first. `*` is first or last of all.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bpfkeeperd.desired import Attachment
from bpfkeeperd.layout import LinkKey
from bpfkeeperd.observed import Observed, ObservedLink, Place
from bpfkeeperd.state import Neighbour

ANY = "*"
NAME_MAX = 15
"""Characters of a program's name that the kernel keeps."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a program goes among those that are there."""

    number: int
    """It runs before the one that has this place now; their count: behind all."""
    note: str = ""
    """Why that is not what the manifest asks for."""


def ordered_places(every: Collection[Attachment]) -> dict[Place, tuple[Attachment, ...]]:
    """The attachments of each hook of which the manifest says anything about the order."""
    places: dict[Place, list[Attachment]] = {}
    for each in every:
        if each.before or each.after:
            places.setdefault(place_of_hook(each), [])
    if places:
        for each in every:
            if (place := place_of_hook(each)) in places:
                places[place].append(each)
    return {place: tuple(found) for place, found in places.items()}


def owners(
    peers: Iterable[Attachment], links: Mapping[LinkKey, ObservedLink]
) -> dict[int, Attachment]:
    """Whose each link is, by its ID."""
    return {links[peer.key].info.id: peer for peer in peers if peer.key in links}


def slot(
    own: Attachment,
    peers: Sequence[Attachment],
    there: Sequence[Neighbour],
    owned: Mapping[int, Attachment],
) -> Slot:
    """The place of an attachment that is not there yet."""
    sooner, later = _bounds(own, peers, there, owned)
    low, high = max(sooner, default=-1) + 1, min(later, default=len(there))
    if low > high:
        return Slot(
            low if own.after else high,
            f"{own} cannot have the place that the manifest asks for: the programs that are there"
            " are in another order",
        )
    asked = own.before or own.after
    wanted = {_label(peer) for peer in peers}
    missing = asked not in ("", ANY, *wanted) and not any(
        _is_called(one, asked, owned) for one in there
    )
    note = f"{own} is attached at the end: {asked} is not there" if missing else ""
    return Slot(low if own.after not in ("", ANY) and not missing else high, note)


def misplaced(
    own: Attachment,
    peers: Sequence[Attachment],
    there: Sequence[Neighbour],
    owned: Mapping[int, Attachment],
) -> str:
    """What is wrong with the place that an attachment has; empty for nothing."""
    mine = [number for number, one in enumerate(there) if owned.get(one.link_id) == own]
    if not mine or not (own.before or own.after):
        return ""
    sooner, later = _bounds(own, peers, there, owned)
    wrong = [
        *((number, "before") for number in sooner if number > mine[0]),
        *((number, "after") for number in later if number < mine[0]),
    ]
    if not _rank(own):  # that another is not the last of all is said of that one
        wrong = [
            (number, side) for number, side in wrong if not _rank(_owner(there, number, owned))
        ]
    if not wrong:
        return ""
    number, side = wrong[0]
    other = _owner(there, number, owned)
    name = _label(other) if other else there[number].name or f"program ID {there[number].prog_id}"
    return (
        f"it runs {side} {name}, against the order in the manifest: a program that is attached"
        " cannot move; take it out of the manifest, reload, and put it in again"
    )


def status_of_order(
    attachment: Attachment, places: Mapping[Place, Sequence[Attachment]], observed: Observed
) -> str:
    """`misplaced`, of what was observed."""
    place = place_of_hook(attachment)
    peers = places.get(place, ())
    there = observed.orders.get(place, ())
    return misplaced(attachment, peers, there, owners(peers, observed.links)) if peers else ""


def circle(attachments: Iterable[Attachment]) -> tuple[str, ...]:
    """Programs of one hook that would all have to run before each other; empty where none do."""
    edges = _edges(tuple(attachments))
    for label in sorted(edges):
        if label in _reach(label, edges):
            ahead = _reach(label, edges)
            return tuple(each for each in sorted(ahead) if label in _reach(each, edges))
    return ()


def place_of_hook(attachment: Attachment) -> Place:
    return attachment.target, attachment.hook.attach_type


def _label(attachment: Attachment) -> str:
    return f"{attachment.object}/{attachment.program}"


def _is_called(one: Neighbour, name: str, owned: Mapping[int, Attachment]) -> bool:
    owner = owned.get(one.link_id)
    if "/" in name:
        return owner is not None and _label(owner) == name
    return one.name == name[:NAME_MAX]


def _edges(peers: Sequence[Attachment]) -> dict[str, set[str]]:
    """Label to labels that come later."""
    edges: dict[str, set[str]] = {}
    for peer in peers:
        if peer.before not in ("", ANY):
            edges.setdefault(_label(peer), set()).add(peer.before)
        if peer.after not in ("", ANY):
            edges.setdefault(peer.after, set()).add(_label(peer))
    return edges


def _reach(label: str, edges: Mapping[str, Iterable[str]]) -> set[str]:
    """All labels that come later than this one."""
    found, ahead = set[str](), [label]
    while ahead:
        for one in edges.get(ahead.pop(), ()):
            if one not in found:
                found.add(one)
                ahead.append(one)
    return found


def _rank(attachment: Attachment | None) -> int:
    if attachment is None:
        return 0
    return (attachment.after == ANY) - (attachment.before == ANY)


def _owner(
    there: Sequence[Neighbour], number: int, owned: Mapping[int, Attachment]
) -> Attachment | None:
    return owned.get(there[number].link_id)


def _bounds(
    own: Attachment,
    peers: Sequence[Attachment],
    there: Sequence[Neighbour],
    owned: Mapping[int, Attachment],
) -> tuple[list[int], list[int]]:
    """Places of those that must run sooner, and of those that must run later."""
    edges = _edges(peers)
    backwards: dict[str, set[str]] = {}
    for label, ahead in edges.items():
        for one in ahead:
            backwards.setdefault(one, set()).add(label)

    def places(names: set[str], side: int) -> Iterator[int]:
        for number, one in enumerate(there):
            owner = owned.get(one.link_id)
            if owner == own:
                continue
            named = any(_is_called(one, name, owned) for name in names)
            if named or (_rank(owner) - _rank(own)) * side > 0:
                yield number

    label = _label(own)
    return list(places(_reach(label, backwards), -1)), list(places(_reach(label, edges), 1))
