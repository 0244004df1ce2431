"""What tells two programs apart that somebody else and the keeper loaded."""

from dataclasses import replace

import pytest

from bpfkeeperd.actions import Attach
from bpfkeeperd.desired import Attachment, Desired
from bpfkeeperd.entries import AttachEntry, ProgramEntry
from bpfkeeperd.foreign import corresponding
from bpfkeeperd.observed import Foreign
from bpfkeeperd.plan import plan
from bpfkeeperd.state import LinkInfo, ProgramInfo
from tests.unit.ideal import Ideal
from tests.unit.test_plan import WEB, an_object, desire, machine

OURS = ProgramInfo(1, 8, (10, 20, 30), "count", "ab")
THEIRS = ProgramInfo(2, 8, (10, 21, 31), "count", "ab")
KEPT = frozenset({10})


def same(ours: int, theirs: int) -> bool:
    return True


def test_maps_that_are_not_kept_correspond_by_their_order() -> None:
    assert corresponding(OURS, THEIRS, KEPT, same) == {20: 21, 30: 31}


@pytest.mark.parametrize(
    "theirs",
    [
        replace(THEIRS, type=9),
        replace(THEIRS, name="former"),
        replace(THEIRS, tag="cd"),
        replace(THEIRS, map_ids=(10, 21)),
        replace(THEIRS, map_ids=(11, 21, 31)),
    ],
    ids=["type", "name", "tag", "number of maps", "kept map"],
)
def test_another_program(theirs: ProgramInfo) -> None:
    assert corresponding(OURS, theirs, KEPT, same) is None


def test_a_map_that_is_declared_in_another_way() -> None:
    asked = []

    def other(ours: int, theirs: int) -> bool:
        asked.append((ours, theirs))
        return ours != 30

    assert corresponding(OURS, THEIRS, KEPT, other) is None
    assert asked == [(20, 21), (30, 31)]


def test_one_map_of_ours_is_two_of_theirs() -> None:
    ours = replace(OURS, map_ids=(10, 20, 20))
    assert corresponding(ours, THEIRS, KEPT, same) is None


def test_the_very_program() -> None:
    """A reload that was killed between an update and its pin leaves it."""
    assert corresponding(OURS, replace(THEIRS, id=1, tag="cd"), KEPT, same) == {}


def taking_over() -> tuple[Desired, Ideal, Attachment]:
    """An object that is loaded and attached nowhere yet, and may take over."""
    entry, file = an_object("one")
    attach = AttachEntry(WEB, take_over=True)
    entry = replace(entry, programs={"count": ProgramEntry("count", (attach,))})
    desired = desire((entry, file))
    ideal = machine(desired)
    ideal.links.clear()
    return desired, ideal, desired.objects["one"].attachments[0]


def put(ideal: Ideal, at: Attachment, tag: str, *, linked: bool = True) -> Foreign:
    program = replace(ideal.make_program({}), name=at.program, tag=tag)
    link = LinkInfo(ideal.new_id(), program.id, 3, 10, at.hook.attach_type)
    ideal.foreign.append((at, Foreign(program, link if linked else None)))
    return ideal.foreign[-1][1]


def test_what_runs_beside_the_link_that_is_kept_goes_all_the_same() -> None:
    desired, ideal, at = taking_over()
    other, loose = put(ideal, at, "another"), put(ideal, at, "another", linked=False)
    kept = put(ideal, at, "same")
    (attach,) = plan(desired, ideal.observe(desired)).actions
    assert isinstance(attach, Attach)
    assert attach.adopt == replace(kept, same=True)
    assert attach.displaced == (attach.adopt, other, loose)  # enacted: the first link's place
    assert str(attach) == (
        f"adopt {kept} for {at}: it is the same program: TAKES OVER {kept} if not"
        f": DETACHES {other} afterwards, both run for a moment"
        f": DETACHES program count ID {loose.program.id} of somebody else, attached without a link"
        " afterwards, both run for a moment"
    )
    ideal.apply(plan(desired, ideal.observe(desired)), desired)
    assert plan(desired, ideal.observe(desired)).actions == () and not ideal.foreign
