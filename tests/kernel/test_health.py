"""Programs on trial: who does not show that he works is rolled back, with the whole reload."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import OnStep, Step, no_failpoint
from bpfkeeperd.trial import Pause, sleep
from tests.kernel.test_reload import plan_now
from tests.kernel.test_rollback import Injected
from tests.kernel.test_whole_reload import AtSwap
from tests.machine import detach_link, inside_cgroup, send_datagrams
from tests.scenario import World, contents, refused

PINS = "pin_maps: {seen: seen, each_cpu: each_cpu, errors: errors, .bss: sums}"
ERRORS = "still: {map: errors, key: {address: 127.0.0.1, port: 9, zero: 0}}"


def write(world: World, health: str, *, maps: str = "", more: str = "") -> None:
    program = f"attach: [{{cgroup: CGROUP}}], health: {{{health}}}"
    world.write(
        f"{maps}objects:\n  one:\n    file: one.bpf.o\n    {PINS}\n"
        f"    programs: {{watch: {{{program}}}}}\n{more}"
    )


def busy(seconds: float) -> bool:
    """Somebody uses the hook meanwhile."""
    send_datagrams(2)
    time.sleep(min(seconds, 0.01))
    return True


@contextmanager
def keeping(world: World, pause: Pause = busy, on_step: OnStep = no_failpoint) -> Iterator[Keeper]:
    keeper = Keeper(str(world.manifest_file), world.state_directory, on_step, pause)
    try:
        with inside_cgroup(world.cgroup):
            yield keeper
    finally:
        keeper.close()


MOVES = {
    "runs": "moves: runs",
    "a member": "moves: {map: seen, key: 0, member: packets}",
    "bytes": "moves: {map: seen, key: 0, offset: 8, size: 8}",
    "a whole value": "moves: {map: seen, key: 0}",
    "a value of each CPU": "moves: {map: each_cpu, key: 0}",
    "global data": "moves: {map: sums, key: 0, member: total}",
    "raw bytes as the key": "moves: {map: seen, key: {hex: 00 00 00 00}, member: packets}",
}


@pytest.mark.parametrize("moves", MOVES.values(), ids=list(MOVES))
def test_a_counter_that_moves(world: World, moves: str) -> None:
    """The trial is over as soon as it does."""
    world.put("one", "health")
    write(world, f"seconds: 20, {moves}")
    with keeping(world) as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert outcome.duration_seconds < 15
        assert outcome.done[-1].startswith("one/watch is healthy: ")
        world.put("one", "health", VERSION=2)
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert plan_now(world) == ()


QUIET = {name: text for name, text in MOVES.items() if name != "runs"}


@pytest.mark.parametrize("moves", QUIET.values(), ids=list(QUIET))
def test_a_counter_that_does_not_move(world: World, moves: str) -> None:
    """Although what ran before had moved it: what counts is from the swap on."""
    world.put("one", "health")
    write(world, f"seconds: 1, {moves}")
    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        before, links = world.everything(), world.link_ids()
        world.put("one", "health", MUTE=1)
        send_datagrams(3)
        seen = contents(world.pins / "seen")
        outcome = world.reload(keeper)
        text = refused(outcome)
        assert "one/watch: " in text and "did not move within 1 s" in text
        assert text.endswith("the whole reload was rolled back: what ran before goes on running")
        assert outcome.rolled_back and outcome.done == ()
        assert world.link_ids() == links
        assert {k: v for k, v in world.everything().items() if "map " not in k} == {
            k: v for k, v in before.items() if "map " not in k
        }
        assert contents(world.pins / "seen") == seen, "the mute version counted"
        send_datagrams(3)
        assert contents(world.pins / "seen") != seen, "the former version does not count"


def test_a_program_that_nobody_runs(world: World) -> None:
    world.put("one", "health")
    write(world, "seconds: 1, moves: runs")
    with keeping(world, lambda seconds: sleep(seconds)) as keeper:
        outcome = world.reload(keeper)
        assert "one/watch: its run count did not move within 1 s (it stays at 0)" in refused(
            outcome
        )
        assert world.link_ids() == {} and world.program_ids() == set()
        assert not (world.pins / "seen").exists(), "a first load is taken back altogether"
        assert os.listdir(world.layout.objects) == []


def test_an_error_counter_that_moves(world: World) -> None:
    """At once, and the entry was not there before."""
    world.put("one", "health")
    write(world, f"seconds: 1, {ERRORS}, moves: runs")
    with keeping(world) as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK
        assert outcome.duration_seconds >= 1, "what must be still has to be so for its time"
        assert "did not" in outcome.done[-1]
        write(world, f"seconds: 20, {ERRORS}")
        links = world.link_ids()
        world.put("one", "health", WRONG=1)
        outcome = world.reload(keeper)
        text = refused(outcome)
        assert "one/watch: errors[{address: 127.0.0.1, port: 9, zero: 0}] moved from 0 to " in text
        assert outcome.duration_seconds < 15
        assert world.link_ids() == links


def test_errors_of_before_do_not_count(world: World) -> None:
    world.put("one", "health", WRONG=1)
    write(world, "seconds: 1, moves: runs")
    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        write(world, f"seconds: 1, {ERRORS}")
        world.put("one", "health")
        assert world.reload(keeper).result is ReloadResult.OK


def test_a_recreated_map_comes_back(world: World) -> None:
    """With its ID and its contents; the counter of the new one was that of the new one."""
    maps = "maps: {seen: {on_mismatch: recreate}}\n"
    world.put("one", "health")
    write(world, "seconds: 1, moves: {map: seen, key: 0, member: packets}", maps=maps)
    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        before, map_id = contents(world.pins / "seen"), world.map_id("seen")
        assert any(before.values())
        world.put("one", "health", ENTRIES=8, MUTE=1)
        text = refused(world.reload(keeper))
        assert "seen[0].packets did not move within 1 s (it stays at 0)" in text
        assert world.map_id("seen") == map_id and contents(world.pins / "seen") == before
        assert world.changes == []
        world.put("one", "health", ENTRIES=8)
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.map_id("seen") != map_id


def test_all_objects_are_rolled_back(world: World) -> None:
    """One that is fine goes with the one that is not; one that cannot be loaded is told, too."""
    others = (
        "  two: {file: two.bpf.o, pin_maps: [twos], programs: {count: {attach: [{cgroup: CGROUP}],"
        " health: {seconds: 1, moves: {map: twos, key: 0, member: events}}}}}\n"
        "  three: {file: three.bpf.o, pin_maps: [threes]}\n"
        "  four: {file: four.bpf.o, programs: {enter: {attach: [{cgroup: CGROUP}]}}}\n"
    )

    def put(version: int, **macros: object) -> None:
        world.put("one", "health", VERSION=version, **macros)
        world.put("two", MAP="twos", STEP=version)
        world.put("three", MAP="threes", STEP=version)
        world.put("four", "stages", VERSION=version, STATIC=1)

    put(1)
    write(world, f"seconds: 1, {ERRORS}", more=others)
    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        links, programs, array = world.link_ids(), world.program_ids(), _array(world)
        put(2, WRONG=1)
        world.put("three", MAP="threes", REFUSED=1)
        outcome = world.reload(keeper)
        text = refused(outcome)
        assert "object three: the verifier refuses" in text and "one/watch: errors[" in text
        assert world.link_ids() == links and world.program_ids() == programs
        assert _array(world) == array
        put(2)
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.link_ids() != links and _array(world) != array


def _array(world: World) -> int | None:
    return world.map_id("bpfkeeperd/arrays/four/jumps")


def test_the_keeper_stays_with_the_former_version(world: World) -> None:
    """Status, drift and looks are of what runs; the next reload tries again."""
    world.put("one", "health")
    write(world, f"seconds: 1, {ERRORS}")
    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        assert not any(keeper.status.drift.values())
        links, desired = world.link_ids(), keeper.desired
        assert desired
        world.put("one", "health", WRONG=1)
        write(
            world,
            f"seconds: 1, {ERRORS}",
            maps="maps: {own: {type: array, key: u32, value: u64, max_entries: 1}}\n",
        )
        refused(world.reload(keeper))
        for _ in range(2):
            (attachment,) = keeper.status.attachments
            assert attachment.up and "rolled back, since one/watch: errors[" in attachment.problem
            drift = {kind: count for kind, count in keeper.status.drift.items() if count}
            assert drift == {"object_held_back": 1}
            assert keeper.look() == ()
        assert keeper.desired and "own" not in keeper.desired.maps
        assert keeper.desired.objects["one"].digest == desired.objects["one"].digest
        refused(world.reload(keeper))  # asked for: it is tried again
        assert world.link_ids() == links
        world.put("one", "health", VERSION=3)
        assert world.reload(keeper).result is ReloadResult.OK
        assert not any(keeper.status.drift.values())
        assert not keeper.status.attachments[0].problem


def test_after_a_reload_that_failed_otherwise(world: World) -> None:
    """What ran before both goes on, and is what is healed."""
    world.put("one", "health")
    write(world, f"seconds: 1, {ERRORS}")
    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        before = world.link_ids()
        world.put("one", "health", VERSION=2)
        keeper._on_step = AtSwap(1)
        assert "swap 1 of 1 failed" in refused(world.reload(keeper))
        keeper._on_step = no_failpoint
        world.put("one", "health", WRONG=1)
        assert "one/watch: errors[" in refused(world.reload(keeper))
        assert world.link_ids() == before
        (path,) = world.layout_files("links")
        detach_link(path)
        keeper.heal(1.0)
        ((_, program),) = world.link_ids().values()
        ((_, former),) = before.values()
        assert program == former and keeper.status.attachments[0].up


def test_a_keeper_that_starts_with_a_bad_version(world: World) -> None:
    """It knows nothing of the one before but what is pinned, and leaves that alone."""
    world.put("one", "health")
    write(world, f"seconds: 1, {ERRORS}")
    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
    links = world.link_ids()
    world.put("one", "health", WRONG=1)
    with keeping(world) as keeper:
        refused(world.reload(keeper))
        assert world.link_ids() == links
        keeper.look()
        (attachment,) = keeper.status.attachments
        assert attachment.up and "rolled back, since" in attachment.problem
        assert world.link_ids() == links
        drift = {kind: count for kind, count in keeper.status.drift.items() if count}
        assert drift == {"object_held_back": 1}


def test_told_to_stop(world: World) -> None:
    world.put("one", "health")
    write(world, "seconds: 20, moves: {map: seen, key: 1}")
    with keeping(world, lambda seconds: False) as keeper:
        text = refused(world.reload(keeper))
        assert "the keeper was told to stop before the health of one/watch was known" in text
        assert world.link_ids() == {}


def test_nothing_to_judge_when_nothing_is_loaded(world: World) -> None:
    world.put("one", "health")
    write(world, "seconds: 20, moves: runs")

    def nobody(seconds: float) -> bool:
        raise AssertionError("there is nothing to wait for")

    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        keeper._pause = nobody
        assert world.reload(keeper).result is ReloadResult.OK
        write(world, "seconds: 200, moves: {map: seen, key: 1}")
        assert world.reload(keeper).result is ReloadResult.OK


def test_a_target_that_is_not_there(world: World) -> None:
    """The program cannot show anything, and is not blamed for it."""
    world.put("one", "health")
    write(world, "seconds: 1, moves: runs")
    world.write(
        world.manifest_file.read_text()
        .split("\n", 2)[2]
        .replace(str(world.cgroup), f"{world.cgroup}/none")
    )
    with keeping(world) as keeper:
        outcome = world.reload(keeper)
        assert not outcome.failures and "there is no cgroup" in outcome.refusals[0]
        assert len(world.program_ids()) == 2


@pytest.mark.parametrize("step", (Step.COUNT_RUNS, Step.TRIAL))
def test_each_step_of_a_trial_fails(world: World, step: Step) -> None:
    world.put("one", "health")
    world.put("two", MAP="twos")
    more = "  two: {file: two.bpf.o, pin_maps: [twos]}\n"
    write(world, "seconds: 5, moves: runs", more=more)
    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        links = world.link_ids()
        world.put("one", "health", VERSION=2)
        world.put("two", MAP="twos", STEP=2)

        def fail(now: Step, subject: object) -> None:
            if now is step:
                raise Injected(f"do {now} of {subject}", 1)

        keeper._on_step = fail
        outcome = world.reload(keeper)
        text = refused(outcome)
        assert f"cannot do {step} of " in text and "cannot be judged" in text
        assert world.link_ids() == links
        assert outcome.rolled_back == (step is Step.TRIAL)
        loaded = [line for line in outcome.done if line.startswith("load object two")]
        assert bool(loaded) == (step is Step.COUNT_RUNS), "runs concern one object alone"


def test_runs_are_counted_during_a_trial_only(world: World) -> None:
    switched = []

    def pause(seconds: float) -> bool:
        switched.append(_runs(world))
        return busy(seconds)

    world.put("one", "health")
    write(world, f"seconds: 1, moves: runs, {ERRORS}")
    with keeping(world, pause) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        assert switched[-1] > switched[0], "runs were not counted"
        after = _runs(world)
        send_datagrams(5)
        assert _runs(world) == after, "runs are still counted"


def _runs(world: World) -> int:
    (program_id,) = (program for _, program in world.link_ids().values())
    fd = kernel.program_by_id(program_id)
    assert fd
    with kernel.holding(fd):
        return kernel.program_stats(fd).run_count


def test_a_map_that_another_object_makes(world: World) -> None:
    """It is counted from the new map on, although that comes after the program on trial."""
    maps = "maps: {twos: {on_mismatch: recreate}, seen: {on_mismatch: recreate}}\n"
    more = (
        "  two: {file: two.bpf.o, pin_maps: [twos]}\n"
        "  three: {file: three.bpf.o, pin_maps: [seen]}\n"
    )

    def put(entries: int) -> None:
        world.put("one", "health", ENTRIES=entries)
        world.put("two", MAP="twos", TYPE="BPF_MAP_TYPE_ARRAY", ENTRIES=entries)
        world.put("three", "health", ENTRIES=entries)

    put(4)
    write(world, "seconds: 1, still: {map: twos, key: 1}", maps=maps, more=more)
    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        found = kernel.pinned_map(str(world.pins / "twos"))
        assert found
        with kernel.holding(found[0]):
            kernel.map_update(found[0], (1).to_bytes(4, "little"), b"12345678" * 2)
        put(8)
        order = []
        keeper._on_step = lambda step, subject: order.append((step, str(subject)))
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert world.map_id("twos") != found[1].id
        swapped = next(place for place, (step, _) in enumerate(order) if step is Step.SWAP)
        assert swapped < order.index((Step.COMMIT_MAP, "twos"))


def test_what_left_the_manifest_stays_with_a_rollback(world: World) -> None:
    world.put("one", "health")
    world.put("two", MAP="twos")
    more = (
        "  two: {file: two.bpf.o, pin_maps: [twos],"
        " programs: {count: {attach: [{cgroup: CGROUP}]}}}\n"
    )
    write(world, f"seconds: 1, {ERRORS}", more=more)
    with keeping(world) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        links = world.link_ids()
        assert len(links) == 2
        world.put("one", "health", WRONG=1)
        write(world, f"seconds: 1, {ERRORS}")
        refused(world.reload(keeper))
        assert world.link_ids() == links
        assert len(keeper.status.attachments) == 2
        world.put("one", "health", VERSION=2)
        assert world.reload(keeper).result is ReloadResult.OK
        assert len(world.link_ids()) == 1


@pytest.mark.parametrize(
    ("health", "message"),
    [
        ("moves: {map: sen, key: 0}", "no map sen is kept here: did you mean seen?"),
        ("moves: {map: seen, key: 4}", "key 4 is outside of the array"),
        ("moves: {map: seen, key: x}", 'key must be an integer, not "x"'),
        ("moves: {map: seen, key: 0, member: packet}", "has no member packet: did you mean"),
        ("moves: {map: seen, key: 0, offset: 44}", "ends at byte 52, a value has 48"),
        ("moves: {map: seen, key: 0, offset: 0, size: 49}", "ends at byte 49, a value has 48"),
        ("still: {map: errors, key: 5}", "key must be a mapping"),
        ("still: {map: ring, key: 0}", "a ringbuf has no counters that can be read"),
    ],
)
def test_counters_that_are_not_there(world: World, health: str, message: str) -> None:
    world.put("one", "health")
    write(world, f"seconds: 1, {health}", maps="maps: {ring: {type: ringbuf, max_entries: 4096}}\n")
    outcome = world_reload_rejected(world)
    assert message in outcome


def world_reload_rejected(world: World) -> str:
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
    assert outcome.result is ReloadResult.REJECTED
    return outcome.failures[0].message


def test_members_with_members(world: World) -> None:
    """A struct or an array counts as a whole; it is compared, not summed up."""
    world.put("one", "health")
    for member, offset in (("more", 16), ("more.wrong", 16), ("more.text", 24)):
        write(world, f"seconds: 1, still: {{map: seen, key: 0, member: {member}}}")
        with keeping(world, lambda _: True) as keeper:
            keeper._pause = sleep
            world.reload(keeper, force=True)
            assert keeper.desired
            still = keeper.desired.objects["one"].health["watch"].still
            assert still and still.offset == offset
            assert still.size == {"more": 32, "more.wrong": 8, "more.text": 24}[member]


OVERLAPPING = (
    "objects:\n  one:\n    file: one.bpf.o\n    pin_maps: [counts]\n"
    "    programs: {count: {attach: [{tracepoint: sys_enter}],"
    " health: {seconds: 1, moves: {map: counts, key: 7}}}}\n"
)


def test_one_that_overlaps_ends_for_the_trial(world: World) -> None:
    """Old and new run beside each other for the moment of the swap only; the old one is attached
    again when the new one goes."""
    alone = []

    def pause(seconds: float) -> bool:
        before = world.events()
        os.getppid()
        after = world.events()
        alone.append(after[1] - before[1] == 1000 * (after[0] - before[0]))
        return sleep(seconds)

    def events_are_counted() -> bool:
        before = world.events()
        os.getppid()
        after = world.events()
        return after[0] > before[0] and after[1] - before[1] == after[0] - before[0]

    hook = '"raw_tracepoint/sys_enter"'
    world.put("one", HOOK=hook)
    world.write(
        OVERLAPPING.replace("seconds: 1, moves: {map: counts, key: 7}", "seconds: 5, moves: runs")
    )
    with keeping(world, pause) as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        assert events_are_counted()
        world.write(OVERLAPPING)
        programs = [program for _, program in world.link_ids().values()]
        world.put("one", HOOK=hook, STEP=1000)
        alone.clear()
        text = refused(world.reload(keeper))
        assert "counts[7] did not move" in text and "undone" not in text
        assert alone and all(alone), "the old program ran on while the new one was on trial"
        assert [program for _, program in world.link_ids().values()] == programs
        assert events_are_counted()
        assert plan_now(world) != ()
