"""What of a plan is done to put right what drifted, without a reload. Pure.

A plan made for a reload holds together what belongs to one version. Here everything that can be
done alone is, so that what fails or comes back all the time does not keep the rest from being
healed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bpfkeeperd.actions import (
    Action,
    Attach,
    Change,
    Detach,
    Displace,
    LoadObject,
    Plan,
    Removal,
    RemoveArray,
    RemovePrograms,
    RemoveStub,
    RestoreLink,
    RestoreProgram,
    RestoreStub,
    SetRights,
    Swap,
    WriteEntries,
)
from bpfkeeperd.backoff import Backoff, Verdict
from bpfkeeperd.desired import target_name
from bpfkeeperd.layout import LinkKey, unescape
from bpfkeeperd.observed import Observed

LINKS_AT_ONCE = 64
"""An attachment may take the kernel 16 ms (TCX waits for a grace period): after so many the daemon
sees first what else there is to do."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What can drift again and again. A target that came back is another one: it has a new ID, and
    nobody fights over it."""

    kind: str
    """``map``, ``entries``, ``rights``, ``object``, ``attachment`` or ``leftover``."""
    name: str
    target_id: int | str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Healing:
    """What is done now of a plan, in which order, and what is not."""

    plans: tuple[Plan, ...]
    """One after the other. A swap that fails undoes all of its plan: each is in one of its own."""
    tried: tuple[tuple[Action, Subject], ...] = ()
    """Each action of the plan with what it is about."""
    again_at: float | None = None
    """When something that is left for later may be done."""
    given_up: tuple[Subject, ...] = ()
    """What drifts and is left alone."""
    impossible: tuple[str, ...] = ()
    """What only a reload can do, and why."""


@dataclass(slots=True)
class _Sieve:
    observed: Observed
    backoff: Backoff[Subject]
    now: float
    again_at: float | None = None
    given_up: dict[Subject, None] = field(default_factory=dict)
    tried: list[tuple[Action, Subject]] = field(default_factory=list)

    def lets_through(self, actions: tuple[Action, ...]) -> bool:
        """Whether all of these may be done now; they happen together or not at all."""
        found = [(action, _subject(action, self.observed)) for action in actions]
        verdicts = {subject: self.backoff.judge(subject, self.now) for _, subject in found}
        gone = [subject for subject, verdict in verdicts.items() if verdict is Verdict.GIVEN_UP]
        self.given_up |= dict.fromkeys(gone)
        if gone:
            return False
        later = [subject for subject, verdict in verdicts.items() if verdict is Verdict.LATER]
        if later:
            due = max(map(self.backoff.due, later))
            self.again_at = due if self.again_at is None else min(self.again_at, due)
            return False
        self.tried += found
        return True


def heal(
    plan: Plan,
    observed: Observed,
    backoff: Backoff[Subject],
    now: float,
    changed_files: Mapping[str, str],
) -> Healing:
    """What is done now.

    ``changed_files`` are objects whose file is not the one that was loaded, and how so: loading
    them would be a reload.
    """
    sieve = _Sieve(observed, backoff, now)
    restores = tuple(action for action in plan.restores if sieve.lets_through((action,)))
    changes: list[Change] = []
    impossible: list[str] = []
    apart, left_over = _apart(plan)
    links = 0
    for change in apart:
        if links >= LINKS_AT_ONCE:
            sieve.again_at = now
            break
        why = [changed_files[name] for name in _loaded_objects(change) if name in changed_files]
        if why:
            impossible += why
        elif sieve.lets_through(change.actions):
            changes.append(change)
            links += len(change.links)
    removals = tuple(
        action for action in (*plan.removals, *left_over) if sieve.lets_through((action,))
    )
    together = [change for change in changes if not _swaps(change)]
    first = Plan(restores=restores, changes=tuple(together), removals=removals)
    return Healing(
        plans=(
            *((first,) if first.actions else ()),
            *(Plan(changes=(change,)) for change in changes if _swaps(change)),
        ),
        tried=tuple(sieve.tried),
        again_at=sieve.again_at,
        given_up=tuple(sieve.given_up),
        impossible=tuple(dict.fromkeys(impossible)),
    )


def _swaps(change: Change) -> bool:
    return any(isinstance(link, Swap) for link in change.links)


def loaded_objects(plan: Plan) -> list[str]:
    """Objects that a plan loads."""
    return [name for change in plan.changes for name in _loaded_objects(change)]


def _loaded_objects(change: Change) -> list[str]:
    return [load.object.name for load in change.loads]


def _apart(plan: Plan) -> tuple[list[Change], list[Removal]]:
    """Changes of attachments, entries and rights alone are taken apart: none needs another."""
    apart: list[Change] = []
    left_over: list[Removal] = []
    for change in plan.changes:
        if change.maps or change.loads:
            apart.append(change)
            continue
        apart += [Change(links=(link,)) for link in change.links]
        apart += [Change(writes=(write,)) for write in change.writes]
        apart += [Change(rights=(rights,)) for rights in change.rights]
        left_over += change.removals
    return apart, left_over


def _subject(action: Action, observed: Observed) -> Subject:
    match action:
        case RestoreLink(key, info):
            return Subject("attachment", _key_name(key), info.target_id)
        case Attach(attachment) | Swap(attachment) | Displace(attachment):
            target_id = observed.targets.get(attachment.target)
            name = f"{attachment.object}/{attachment.program} at {target_name(attachment.target)}"
            return Subject("attachment", name, target_id)
        case RestoreProgram(name, _, _):
            return Subject("object", unescape(name))
        case LoadObject(wanted):
            return Subject("object", wanted.name)
        case WriteEntries(wanted_map):
            return Subject("entries", wanted_map.name)
        case SetRights(wanted_map):
            return Subject("rights", wanted_map.name)
        case Detach(key):
            link = observed.links.get(key)
            return Subject("leftover", _key_name(key), link.info.id if link else None)
        case RemovePrograms(name, digest):
            return Subject("leftover", f"{unescape(name)} {digest}")
        case RemoveArray(name):
            return Subject("leftover", name)
        case RestoreStub(stub):
            return Subject("attachment", f"the stub of {unescape(stub[0])}/{unescape(stub[1])}")
        case RemoveStub(stub):
            return Subject("leftover", f"the stub of {unescape(stub[0])}/{unescape(stub[1])}")
        case _:
            return Subject("map", action.map.name)


def _key_name(key: LinkKey) -> str:
    object_name, program, target = (unescape(part) for part in key)
    return f"{object_name}/{program} at {target}"
