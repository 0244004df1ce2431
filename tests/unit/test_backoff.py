"""When what drifts again and again is put right, and when no more."""

import pytest

from bpfkeeperd.backoff import Backoff, Pace, Verdict


def fight(backoff: Backoff[str], seconds: float, every: float, start: float = 0.0) -> list[float]:
    """When a subject that drifts all the time is put right, looked at that often."""
    times = []
    for number in range(int(seconds / every) + 1):
        now = start + number * every
        if backoff.judge("it", now) is Verdict.NOW:
            backoff.tried("it", now)
            times.append(now)
    return times


def test_each_time_it_takes_twice_as_long() -> None:
    times = fight(Backoff(), 300, 0.5)
    assert times == [0, 1, 3, 7, 15, 31, 63, 127, 255]


def test_no_longer_than_the_longest() -> None:
    times = fight(Backoff(Pace(1, 4, 8, 3600, 3600)), 100, 0.5)
    assert times == [0, 1, 3, 7, 11, 15, 19, 23]


def test_it_has_an_end_and_begins_anew_an_hour_later() -> None:
    backoff: Backoff[str] = Backoff()
    times = fight(backoff, 4000, 1)
    assert len(times) == 10 and times[-1] == 511
    assert backoff.given_up == ("it",)
    # Looked at next when it might have been tried again, and given up then.
    assert backoff.judge("it", 512 + 3599) is Verdict.GIVEN_UP
    assert backoff.judge("it", 512 + 3600) is Verdict.NOW
    assert not backoff.given_up


def test_what_seldom_drifts_is_never_given_up() -> None:
    backoff: Backoff[str] = Backoff()
    times = fight(backoff, 100_000, 500)
    assert times == [500 * number for number in range(201)]
    assert backoff.given_up == ()


def test_one_subject_does_not_hold_up_another() -> None:
    backoff: Backoff[str] = Backoff()
    fight(backoff, 1000, 1)
    assert backoff.judge("it", 1000) is Verdict.GIVEN_UP
    assert backoff.judge("other", 1000) is Verdict.NOW


def test_later_says_when() -> None:
    backoff: Backoff[str] = Backoff()
    backoff.tried("it", 100)
    backoff.tried("it", 101)
    assert backoff.judge("it", 102.9) is Verdict.LATER
    assert backoff.due("it") == 103
    assert backoff.judge("it", 103) is Verdict.NOW


@pytest.mark.parametrize("tries", [1, 20])
def test_a_reload_forgets_everything(tries: int) -> None:
    backoff: Backoff[str] = Backoff()
    for _ in range(tries):
        backoff.tried("it", 0)
    assert backoff.judge("it", 0) is not Verdict.NOW
    backoff.forget()
    assert backoff.judge("it", 0) is Verdict.NOW and backoff.given_up == ()


def test_what_is_long_ago_takes_no_room() -> None:
    """Targets that come and go each have an ID of their own."""
    backoff: Backoff[int] = Backoff()
    for number in range(100):
        backoff.tried(number, number)
    backoff.forget_old(3650)
    assert backoff.judge(60, 60.5) is Verdict.LATER
    assert len(backoff) == 49
