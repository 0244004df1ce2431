"""Map IDs that start over: about two thousand million are out of a test's reach."""

import pytest

from bpfkeeperd.mapids import LIMIT, Position, Rounds


def totals(*seen: tuple[int, int]) -> list[int]:
    rounds = Rounds()
    return [rounds.allocated(last, highest) for last, highest in seen]


def test_in_the_first_round_the_last_id_is_how_many() -> None:
    assert totals((0, 0), (1, 1), (1, 1), (900, 700), (LIMIT, LIMIT)) == [0, 1, 1, 900, LIMIT]


def test_it_counts_on_when_ids_start_over() -> None:
    seen = (LIMIT - 1, LIMIT - 1), (4, LIMIT - 1), (4, LIMIT - 1), (70, 60), (2, 70), (3, 3)
    assert totals(*seen) == [
        LIMIT - 1, LIMIT + 4, LIMIT + 4, LIMIT + 70, 2 * LIMIT + 2, 2 * LIMIT + 3
    ]  # fmt: skip


def test_ids_that_started_over_before_anybody_asked() -> None:
    """A map is there with a higher ID than the last that was given out."""
    assert totals((10, 5000), (20, 5000), (6000, 5000)) == [LIMIT + 10, LIMIT + 20, LIMIT + 6000]


@pytest.mark.parametrize(
    ("allocated", "headroom"),
    [
        (0, LIMIT),
        (1, LIMIT - 1),
        (LIMIT - 1, 1),
        (LIMIT, 0),
        (LIMIT + 1, LIMIT - 1),
        (3 * LIMIT, 0),
    ],
)
def test_headroom(allocated: int, headroom: int) -> None:
    assert Position(allocated, exact=True).headroom == headroom
