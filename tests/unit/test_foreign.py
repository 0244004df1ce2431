"""What tells two programs apart that somebody else and the keeper loaded."""

from dataclasses import replace

import pytest

from bpfkeeperd.foreign import corresponding
from bpfkeeperd.state import ProgramInfo

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
