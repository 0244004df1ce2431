"""What of a plan is done without a reload, and what waits."""

from dataclasses import replace

import pytest

from bpfkeeperd.actions import Attach, Detach, LoadObject, Swap
from bpfkeeperd.backoff import Backoff, Pace
from bpfkeeperd.desired import Desired
from bpfkeeperd.heal import LINKS_AT_ONCE, Healing, Subject, heal
from bpfkeeperd.observed import Observed
from bpfkeeperd.plan import plan
from bpfkeeperd.targets import CgroupTarget
from tests.unit.ideal import Ideal
from tests.unit.test_plan import DB, WEB, an_object, desire


class Machine:
    """Two objects that are loaded and attached, and what heals them."""

    def __init__(self, count: int = 2) -> None:
        self.targets = [CgroupTarget(f"web-{number}") for number in range(count)]
        self.desired = desire(
            an_object("one", "flows", at=self.targets), an_object("two", "tables", at=[DB])
        )
        self.ideal = Ideal()
        self.ideal.targets = {
            target: number for number, target in enumerate([*self.targets, WEB, DB], start=1)
        }
        self.ideal.apply(plan(self.desired, self.observed), self.desired)
        self.backoff: Backoff[Subject] = Backoff(Pace(tries_max=3))

    @property
    def observed(self) -> Observed:
        return self.ideal.observe(self.desired)

    def dead(self, *keys: int) -> Observed:
        """Links of the first object that were detached, by number."""
        observed, links = self.observed, dict(self.observed.links)
        for number in keys:
            key = self.desired.objects["one"].attachments[number].key
            links[key] = replace(links[key], info=replace(links[key].info, target_id=0))
        return replace(observed, links=links)

    def heal(
        self, observed: Observed, now: float, desired: Desired | None = None, **changed: str
    ) -> Healing:
        todo = plan(desired or self.desired, observed)
        healing = heal(todo, observed, self.backoff, now, changed)
        for subject in dict.fromkeys(subject for _, subject in healing.tried):
            self.backoff.tried(subject, now)
        return healing


def done(healing: Healing) -> list[type]:
    return [type(action) for part in healing.plans for action in part.actions]


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_nothing_drifts_nothing_is_done(machine: Machine) -> None:
    healing = machine.heal(machine.observed, 0)
    assert healing.plans == () and healing.again_at is None


def test_attachments_of_one_object_are_healed_apart(machine: Machine) -> None:
    """A plan for a reload has them in one transaction."""
    observed = machine.dead(0, 1)
    assert len(plan(machine.desired, observed).changes) == 1
    (part,) = machine.heal(observed, 0).plans
    assert [len(change.links) for change in part.changes] == [1, 1]


def test_one_that_drifts_again_waits_and_the_other_does_not(machine: Machine) -> None:
    machine.heal(machine.dead(0), 0)
    healing = machine.heal(machine.dead(0, 1), 0.5)
    assert done(healing) == [Attach]
    (_, subject), *_ = healing.tried
    assert "web-1" in subject.name
    assert healing.again_at == 1
    assert done(machine.heal(machine.dead(0), 1)) == [Attach]


def test_it_is_given_up_in_the_end(machine: Machine) -> None:
    for now in (0, 1, 3):
        assert done(machine.heal(machine.dead(0), now)) == [Attach]
    healing = machine.heal(machine.dead(0), 100)
    assert healing.plans == () and healing.again_at is None
    assert [str(subject) for subject in healing.given_up] == [
        "attachment one/count at cgroup:web-0"
    ]


def test_a_target_that_comes_back_is_another_one(machine: Machine) -> None:
    """Whatever is made anew all the time is served all the time: nobody fights."""
    for number in range(20):
        machine.ideal.targets[machine.targets[0]] = 1000 + number
        assert done(machine.heal(machine.dead(0), 0.01 * number)) == [Attach]


def test_swaps_are_apart_from_all_the_rest(machine: Machine) -> None:
    """One that fails undoes all that is in its plan."""
    observed = machine.dead(0)
    links = dict(observed.links)
    key = machine.desired.objects["two"].attachments[0].key
    links[key] = replace(links[key], info=replace(links[key].info, prog_id=4711))
    healing = machine.heal(replace(observed, links=links), 0)
    assert [[type(action) for action in part.actions] for part in healing.plans] == [
        [Attach],
        [Swap],
    ]


def test_an_object_whose_file_changed_is_left_to_a_reload(machine: Machine) -> None:
    observed = replace(machine.dead(0), programs={})
    healing = machine.heal(observed, 0, two="its file is another: reload")
    assert healing.impossible == ("its file is another: reload",)
    assert {subject.name for _, subject in healing.tried if subject.kind == "object"} == {"one"}
    assert LoadObject in done(healing)


def test_leftovers_go_alone(machine: Machine) -> None:
    without = desire(
        an_object("one", "flows", at=machine.targets[1:]), an_object("two", "tables", at=[DB])
    )
    healing = machine.heal(machine.observed, 0, without)
    assert done(healing) == [Detach]


def test_not_too_many_at_once() -> None:
    machine = Machine(2 * LINKS_AT_ONCE + 3)
    observed = machine.dead(*range(2 * LINKS_AT_ONCE + 3))
    healing = machine.heal(observed, 5)
    assert len(done(healing)) == LINKS_AT_ONCE and healing.again_at == 5
