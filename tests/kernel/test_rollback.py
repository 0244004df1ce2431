"""Every step of a change fails once, and everything is what it was before (I3)."""

import time
from collections.abc import Callable

from bpfkeeperd.errors import KernelError
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import Step
from tests.kernel.test_reload import plan_now
from tests.machine import inside_cgroup, send_datagrams
from tests.scenario import World


class Injected(KernelError):
    pass


class FailAt:
    """Fails at the n-th change, and counts them."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, list[Step]()

    def __call__(self, step: Step, subject: object) -> None:
        self.steps.append(step)
        if len(self.steps) == self.at and step in UNDONE:
            raise Injected(f"do {step} of {subject}", 12)


UNDONE = {
    Step.CREATE_MAP, Step.LOAD_OBJECT, Step.PIN_MAP, Step.STAGE_MAP, Step.PIN_PROGRAMS,
    Step.STAGE_PROGRAMS, Step.COMMIT_PROGRAMS, Step.FILL_MAP, Step.CARRY_DATA,
    Step.WRITE_ENTRIES, Step.RENAME_MAP, Step.MAKE_STUB, Step.MOVE_STUB, Step.RECORD,
    Step.ATTACH, Step.ADOPT, Step.TAKE_OVER, Step.SWAP, Step.COMMIT_MAP, Step.COMMIT_LINK,
    Step.SET_RIGHTS,
}  # fmt: skip
"""The steps of a change; those after it only let go of what nobody needs."""


OF_CONTENTS = {
    *(Step.FILL_MAP, Step.CARRY_DATA, Step.WRITE_ENTRIES, Step.RENAME_MAP, Step.SET_RIGHTS),
}
"""See test_rollback_maps."""
OF_STUBS = {Step.MAKE_STUB, Step.MOVE_STUB}
"""See test_stub."""
OF_OTHERS = {Step.ADOPT, Step.TAKE_OVER}
"""See test_adoption."""
OF_FILTERS = {Step.RECORD}
"""See test_rollback_net."""


def prepare_rollback(world: World) -> tuple[Callable[[Keeper], None], Callable[[], None]]:
    """A change with every step: maps made and recreated, links made, swapped and taken over."""
    world.put("one", STEP=1)
    world.put("two", STEP=1, PROGRAM="former")
    first = (
        "maps: {counts: {on_mismatch: recreate}}\n"
        "objects:\n"
        "  one: {file: one.bpf.o, pin_maps: [counts],\n"
        "        programs: {count: {attach: [{cgroup: CGROUP}]}}}\n"
        "  two: {file: two.bpf.o, pin_maps: [counts],\n"
        "        programs: {former: {attach: [{cgroup: CGROUP}]}}}\n"
    )
    second = (
        "maps:\n"
        "  counts: {on_mismatch: recreate}\n"
        "  second: {type: hash, key_size: 4, value_size: 8, max_entries: 8}\n"
        "objects:\n"
        "  one: {file: one.bpf.o, pin_maps: [counts, second],\n"
        "        programs: {count: {attach: [{cgroup: CGROUP/child}, {cgroup: CGROUP}]}}}\n"
        "  two: {file: two.bpf.o, pin_maps: [counts],\n"
        "        programs: {latter: {attach: [{cgroup: CGROUP}]}}}\n"
    )
    child = world.cgroup / "child"
    child.mkdir()
    world.write(first)

    def start(keeper: Keeper) -> None:
        assert world.reload(keeper).result is ReloadResult.OK
        send_datagrams(3)

    def change() -> None:
        world.put("one", STEP=2, ENTRIES=32, SECOND_MAP=8)
        world.put("two", STEP=2, ENTRIES=32, PROGRAM="latter")
        world.write(second)

    return start, change


def fail_at_each_step(
    world: World, keeper: Keeper, *, force: bool, elsewhere: Callable[[], object] = object
) -> set[Step]:
    """Has a reload fail at its first step, its second, and so on, until it goes through.

    After each failure, everything must be what it was, what is ``elsewhere`` as well. Returns the
    steps that failed.
    """
    before, others = world.everything(), elsewhere()
    failed, at = set[Step](), 0
    while True:
        at += 1
        fail = FailAt(at)
        keeper._on_step = fail
        outcome = world.reload(keeper, force=force)
        if outcome.result is ReloadResult.OK:
            return failed
        failed.add(fail.steps[at - 1])
        assert outcome.result is ReloadResult.FAILED
        assert 0 <= outcome.swapping_seconds < outcome.duration_seconds
        assert "cannot do " in outcome.failures[0].message
        assert world.everything() == before, f"not rolled back: {fail.steps[at - 1]}"
        if elsewhere is not object:
            assert elsewhere() == others, f"not rolled back: {fail.steps[at - 1]}"


def test_every_step_of_a_change_is_rolled_back(world: World) -> None:
    """For each step: programs, links, maps, pins, modes and contents are what they were."""
    start, change = prepare_rollback(world)
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        start(keeper)
        change()
        failed = fail_at_each_step(world, keeper, force=False)
        assert plan_now(world) == ()
    wanted = UNDONE - {Step.STAGE_PROGRAMS, Step.COMMIT_PROGRAMS}
    wanted -= OF_CONTENTS | OF_STUBS | OF_OTHERS | OF_FILTERS
    assert wanted <= failed, f"never reached: {wanted - failed}"


def test_every_step_of_a_forced_reload_is_rolled_back(world: World) -> None:
    """The same file again: a dead link is replaced, programs take their own directory over."""
    child = world.cgroup / "child"
    child.mkdir()
    world.put("one")
    world.write(
        "objects:\n  one: {file: one.bpf.o, pin_maps: [counts],\n"
        "        programs: {count: {attach: [{cgroup: CGROUP/child}, {cgroup: CGROUP}]}}}\n"
    )
    with world.keeper() as keeper:
        world.reload(keeper)
        child.rmdir()
        while min(world.link_targets()) != 0:  # the kernel takes its time to let go of a cgroup
            time.sleep(0.01)
        child.mkdir()
        failed = fail_at_each_step(world, keeper, force=True)
        assert plan_now(world) == ()
    wanted = {Step.STAGE_PROGRAMS, Step.COMMIT_PROGRAMS, Step.COMMIT_LINK, Step.SWAP, Step.ATTACH}
    assert wanted <= failed, f"never reached: {wanted - failed}"
