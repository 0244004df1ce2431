"""The order of programs that share a hook: every way to ask for it, however they come."""

import itertools

import pytest

from bpfkeeperd.desired import Attachment, ObjectSource, attachment
from bpfkeeperd.entries import AttachEntry
from bpfkeeperd.hooks import TCX_INGRESS
from bpfkeeperd.ordering import circle, misplaced, ordered_places, slot
from bpfkeeperd.state import Neighbour
from bpfkeeperd.targets import InterfaceTarget
from tests.unit.test_desired import desire, file, problems, program

TARGET = InterfaceTarget("eth0")
FOREIGN = Neighbour(900, 0, "someone")


def wanted(name: str, before: str = "", after: str = "") -> Attachment:
    entry = AttachEntry(TARGET, before, after)
    return attachment("o", name, TCX_INGRESS, TARGET, entry)


class Hook:
    """Programs at a hook, each with the ID of its place in ``peers``."""

    def __init__(self, *peers: Attachment) -> None:
        self.peers = peers
        self.there: list[Neighbour] = []
        self.owned: dict[int, Attachment] = {}
        self.notes: list[str] = []

    def add(self, own: Attachment) -> None:
        number = self.peers.index(own) + 1
        place = slot(own, self.peers, self.there, self.owned)
        self.there.insert(place.number, Neighbour(number, number, own.program))
        self.owned[number] = own
        self.notes += [place.note] if place.note else []

    @property
    def names(self) -> str:
        return " ".join(one.name for one in self.there)

    def wrong(self, own: Attachment) -> str:
        return misplaced(own, self.peers, self.there, self.owned)


@pytest.mark.parametrize(
    "peers",
    [
        (wanted("a"), wanted("b", before="o/a")),
        (wanted("a", after="o/b"), wanted("b")),
        (wanted("a", after="o/b"), wanted("b", after="o/c"), wanted("c")),
        (wanted("a"), wanted("b", before="o/a"), wanted("c", before="o/b"), wanted("d")),
        (wanted("a", before="*"), wanted("b"), wanted("c", after="*"), wanted("d")),
        (wanted("a", before="*"), wanted("b", before="o/d"), wanted("c", after="*"), wanted("d")),
        (wanted("a", before="someone"), wanted("b", after="someone"), wanted("c", before="*")),
        (wanted("a", before="o/b"), wanted("b", before="someone"), wanted("c", after="o/a")),
    ],
    ids=str,
)
def test_all_that_is_asked_for_holds_whoever_comes_first(peers: tuple[Attachment, ...]) -> None:
    for order in itertools.permutations(peers):
        hook = Hook(*peers)
        hook.there.append(FOREIGN)
        for own in order:
            hook.add(own)
        assert [hook.wrong(own) for own in peers] == [""] * len(peers), hook.names
        assert hook.notes == []


def test_next_to_the_one_that_is_named() -> None:
    peers = (wanted("a"), wanted("b"), wanted("c", before="o/b"), wanted("d", after="o/a"))
    hook = Hook(*peers)
    for own in peers:
        hook.add(own)
    assert hook.names == "a d c b"


def test_a_program_of_the_kernels_name() -> None:
    peers = (wanted("a", before="a_name_that_is_cut_off"),)
    hook = Hook(*peers)
    hook.there = [FOREIGN, Neighbour(901, 77, "a_name_that_is_")]
    hook.add(peers[0])
    assert hook.names == "someone a a_name_that_is_"


def test_one_that_is_not_there_is_told_of() -> None:
    peers = (wanted("a", before="nobody"), wanted("b", after="nobody"))
    hook = Hook(*peers)
    hook.there = [FOREIGN]
    for own in peers:
        hook.add(own)
    assert hook.names == "someone a b"
    assert (
        hook.notes[0]
        == "o/a at tcx/ingress of interface:eth0 is attached at the end: nobody is not there"
    )
    assert len(hook.notes) == 2


def test_an_order_of_others_that_leaves_no_place() -> None:
    a, b, c = wanted("a", after="another"), wanted("b", before="someone"), wanted("c", after="o/a")
    peers = (a, b, c, wanted("d", before="o/b", after="o/c"))
    hook = Hook(*peers)
    hook.there = [FOREIGN, Neighbour(901, 0, "another")]
    for own in peers:
        hook.add(own)
    assert hook.notes and "the programs that are there are in another order" in hook.notes[0]
    assert any(hook.wrong(own) for own in peers)


def test_somebody_else_came_in_between() -> None:
    peers = (wanted("a", before="*"), wanted("b", after="*"), wanted("c"))
    hook = Hook(*peers)
    for own in peers:
        hook.add(own)
    hook.there = [FOREIGN, *hook.there, FOREIGN]
    assert hook.wrong(peers[0]).startswith("it runs after someone, against the order")
    assert hook.wrong(peers[1]).startswith("it runs before someone, against the order")
    assert hook.wrong(peers[2]) == ""


def test_only_hooks_of_which_something_is_said() -> None:
    plain, asking = wanted("a"), wanted("b", after="*")
    elsewhere = attachment("o", "c", TCX_INGRESS, InterfaceTarget("eth1"))
    assert ordered_places([plain, elsewhere]) == {}
    assert ordered_places([plain, asking, elsewhere]) == {(TARGET, 46): (plain, asking)}


def test_circles() -> None:
    assert circle([wanted("a", before="o/b"), wanted("b", before="o/a")]) == ("o/a", "o/b")
    assert circle([wanted("a", before="o/b"), wanted("b", after="o/a")]) == ()
    three = [wanted("a", after="o/b"), wanted("b", after="o/c"), wanted("c", after="o/a")]
    assert circle([*three, wanted("d", after="o/a")]) == ("o/a", "o/b", "o/c")


SHAPER = file(program("one", "tc/ingress"), program("two", "tc/ingress"))
FILTER = file(program("one", "netfilter"), program("two", "netfilter"))


def shaping(one: str, two: str) -> str:
    return (
        "objects:\n  web:\n    file: /lib/web.o\n    programs:\n"
        f"      one: {{attach: [{one}]}}\n      two: {{attach: [{two}]}}\n"
    )


@pytest.mark.parametrize(
    ("one", "two", "text"),
    [
        (
            "{interface: eth0, before: web/two}",
            "{interface: eth0, before: web/one}",
            "k.yaml:6:22: before and after go in a circle: web/one, web/two: leave one of them out",
        ),
        (
            "{interface: eth0}",
            "{interface: eth0, after: web/onne}",
            "k.yaml:7:22: after names web/onne, which the manifest does not attach: did you mean"
            " web/one?",
        ),
        (
            "{interface: eth0, after: web/one}",
            "{interface: eth0}",
            "k.yaml:6:22: a program cannot be after itself",
        ),
    ],
)
def test_mistakes(one: str, two: str, text: str) -> None:
    assert problems(shaping(one, two), web=SHAPER).splitlines()[0] == f"/etc/{text}"


@pytest.mark.parametrize("other", [9, 10, 11])
def test_priorities_of_netfilter_that_would_meet(other: int) -> None:
    text = shaping(
        "{netfilter: ipv4/local_in, priority: 10}",
        f"{{netfilter: ipv4/local_in, priority: {other}}}",
    )
    assert problems(text, web=FILTER).splitlines()[0] == (
        f"/etc/k.yaml:7:22: priority {other} is too near to that of web/one: a program has its"
        " priority alone and needs the next one while it is swapped: leave two between them"
    )


XDP = file(program("one", "xdp"), program("two", "xdp"))
DISSECTORS = file(program("one", "flow_dissector"), program("two", "flow_dissector"))


@pytest.mark.parametrize(
    ("source", "one", "two", "place"),
    [
        (XDP, "{interface: eth0}", "{interface: eth0}", "xdp of interface:eth0"),
        (
            XDP,
            "{interface: eth0, netns: b, mode: native}",
            "{interface: eth0, netns: b}",
            "xdp of interface:eth0@b+native",
        ),
        (XDP, '{interface: "eth*"}', '{interface: "eth*"}', "xdp of interface:eth*"),
        (DISSECTORS, "{netns: b}", "{netns: b}", "flow_dissector of netns:b"),
    ],
)
def test_two_programs_at_a_place_that_takes_one(
    source: ObjectSource, one: str, two: str, place: str
) -> None:
    assert problems(shaping(one, two), web=source).splitlines()[0] == (
        f"/etc/k.yaml:7:22: web/one is attached at {place} already, which takes one program: leave"
        " one of them out"
    )


@pytest.mark.parametrize(
    ("source", "one", "two"),
    [
        (XDP, "{interface: eth0}", "{interface: eth1}"),
        (XDP, "{interface: eth0}", "{interface: eth0, netns: b}"),
        (SHAPER, "{interface: eth0}", "{interface: eth0}"),
        (DISSECTORS, "{netns: b}", "{netns: c}"),
    ],
)
def test_two_programs_at_places_of_their_own(source: ObjectSource, one: str, two: str) -> None:
    assert len(desire(shaping(one, two), web=source).attachments) == 2


def test_priorities_that_do_not_meet() -> None:
    here = "{netfilter: ipv4/local_in, priority: 10}"
    others = (
        here.replace("10", "12"),
        here.replace("ipv4", "ipv6"),
        here.replace("}", ", netns: blue}"),
        here.replace("local_in", "forward"),
    )
    for other in others:
        assert len(desire(shaping(here, other), web=FILTER).attachments) == 2
