"""Remembers what was put right without a reload, how that went, and what is given up."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bpfkeeperd.actions import Plan
from bpfkeeperd.apply import Applied
from bpfkeeperd.backoff import Backoff, Pace
from bpfkeeperd.churn import IdChange
from bpfkeeperd.desired import Desired
from bpfkeeperd.drift import kind_of
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.heal import Healing, Subject, heal, loaded_objects
from bpfkeeperd.observed import Observed
from bpfkeeperd.sources import Sources, Specs
from bpfkeeperd.state import HealStatus
from bpfkeeperd.trust import Files, Trust

PACE = Pace()


@dataclass(frozen=True, slots=True)
class HealedAction:
    kind: str
    """Of drift."""
    subject: str
    text: str
    done: bool


@dataclass(frozen=True, slots=True)
class Healed:
    """What came of one look that puts right what it can."""

    changes: tuple[IdChange, ...] = ()
    actions: tuple[HealedAction, ...] = ()
    notes: tuple[str, ...] = ()
    """What failed, and what else there is to say."""
    given_up: tuple[str, ...] = ()
    """What is given up from now on."""
    impossible: tuple[str, ...] = ()
    """What only a reload can put right."""
    again_at: float | None = None
    """When something can be put right that was left for later."""


class Healer:
    __slots__ = ("_backoff", "_counts", "_given_up")

    def __init__(self) -> None:
        self._backoff: Backoff[Subject] = Backoff(PACE)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._given_up: frozenset[Subject] = frozenset()

    def choose(
        self, todo: Plan, observed: Observed, changed_files: Mapping[str, str], now: float
    ) -> Healing:
        self._backoff.forget_old(now)
        return heal(todo, observed, self._backoff, now, changed_files)

    def record(self, healing: Healing, applied: Applied, now: float) -> Healed:
        """Takes note of what was tried, and how it went."""
        texts = set(applied.done)
        actions = []
        for action, subject in healing.tried:
            text = str(action)
            done = text in texts
            actions.append(HealedAction(kind_of(action), str(subject), text, done))
            self._counts[kind_of(action), "ok" if done else "failed"] += 1
        for subject in dict.fromkeys(subject for _, subject in healing.tried):
            self._backoff.tried(subject, now)
        new = [subject for subject in healing.given_up if subject not in self._given_up]
        self._given_up = frozenset(self._backoff.given_up)
        return Healed(
            actions=tuple(actions),
            notes=(*(failure.message for failure in applied.failures), *applied.notes),
            given_up=tuple(map(str, new)),
            impossible=healing.impossible,
            again_at=healing.again_at,
        )

    def forget(self) -> None:
        """A reload begins anew with everything."""
        self._backoff.forget()
        self._given_up = frozenset()

    @property
    def status(self) -> HealStatus:
        results: dict[str, dict[str, int]] = {}
        for (kind, result), count in self._counts.items():
            results.setdefault(kind, {})[result] = count
        return HealStatus(results, tuple(sorted(map(str, self._given_up))))


def read_for_healing(
    todo: Plan, wanted: Desired, sources: Sources, specs: Specs, trust: Trust
) -> dict[str, str]:
    """Reads the files of objects that a plan loads; returns those that changed since the reload."""
    changed: dict[str, str] = {}
    for name in loaded_objects(todo):
        reason = f"object {name} has to be loaded again"
        try:
            with Files(trust) as files:
                found = sources.read(wanted.manifest.objects[name], specs, files)
        except KeeperError as error:
            changed[name] = f"{reason}, and that cannot be done: {error}"
            continue
        if found.sha256 != wanted.objects[name].source.sha256:
            changed[name] = f"{reason}, and its file is another since: reload"
    return changed
