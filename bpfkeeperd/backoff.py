"""When what drifts is put right again: at once at first, then later and later, and some time not
at all. Pure: the time is always given, in seconds of a clock that does not jump.

Two who want different things must not fight for ever, and what fails must not be tried all the
time.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeVar


@dataclass(frozen=True, slots=True)
class Pace:
    first_seconds: float = 1.0
    """How long a subject that drifts again is left alone after the first time; then twice that."""
    longest_seconds: float = 300.0
    tries_max: int = 10
    """So many within the window, and it is given up."""
    window_seconds: float = 3600.0
    rest_seconds: float = 3600.0
    """How long what was given up is left alone."""


class Verdict(Enum):
    NOW = auto()
    LATER = auto()
    GIVEN_UP = auto()


@dataclass(slots=True)
class _Record:
    tries: list[float] = field(default_factory=list)
    """When, within the window."""
    not_before: float = 0.0
    rests_until: float | None = None


Subject = TypeVar("Subject", bound=Hashable)


class Backoff(Generic[Subject]):
    """What was tried of each subject, and when it may be tried again."""

    __slots__ = ("_pace", "_records")

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._records: dict[Subject, _Record] = {}

    def judge(self, subject: Subject, now: float) -> Verdict:
        """Whether a subject that drifts may be put right now."""
        record = self._records.get(subject)
        if record is None:
            return Verdict.NOW
        if record.rests_until is not None:
            if now < record.rests_until:
                return Verdict.GIVEN_UP
            del self._records[subject]
            return Verdict.NOW
        record.tries = [at for at in record.tries if at > now - self._pace.window_seconds]
        if len(record.tries) >= self._pace.tries_max:
            record.rests_until = now + self._pace.rest_seconds
            return Verdict.GIVEN_UP
        return Verdict.NOW if now >= record.not_before else Verdict.LATER

    def tried(self, subject: Subject, now: float) -> None:
        """Takes note that a subject was put right, or that this failed."""
        record = self._records.setdefault(subject, _Record())
        record.tries.append(now)
        delay = self._pace.first_seconds * 2.0 ** (len(record.tries) - 1)
        record.not_before = now + min(delay, self._pace.longest_seconds)

    def due(self, subject: Subject) -> float:
        """When a subject that is to be tried later may be."""
        record = self._records.get(subject)
        return record.not_before if record else 0.0

    def forget(self) -> None:
        """Begins anew, with every subject."""
        self._records.clear()

    def forget_old(self, now: float) -> None:
        """Lets go of subjects that nobody has tried for long."""
        for subject, record in list(self._records.items()):
            if record.rests_until is not None:
                old = now >= record.rests_until
            else:
                old = record.tries[-1] <= now - self._pace.window_seconds
            if old:
                del self._records[subject]

    def __len__(self) -> int:
        """Of how many subjects something is remembered."""
        return len(self._records)

    @property
    def given_up(self) -> tuple[Subject, ...]:
        return tuple(
            subject for subject, record in self._records.items() if record.rests_until is not None
        )
