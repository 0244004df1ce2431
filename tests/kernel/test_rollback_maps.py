"""Every step of a change to maps and their contents fails once, and all is as before (I3)."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import Step
from tests.kernel.test_reload import plan_now
from tests.kernel.test_rollback import FailAt, Injected, fail_at_each_step
from tests.machine import inside_cgroup, send_datagrams
from tests.scenario import World, contents, refused

ATTACH = "attach: [{cgroup: CGROUP}]"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A change, as what is there before it and what is asked for then."""

    start: Callable[[World], None]
    change: Callable[[World], None]
    steps: frozenset[Step]
    """Those that it is made of, among others."""


def stages(world: World, version: int, **macros: object) -> None:
    world.put("stages", "stages", VERSION=version, **macros)
    programs = f"programs: {{enter: {{{ATTACH}}}}}"
    world.write(f"objects: {{stages: {{file: stages.bpf.o, {programs}}}}}\n")


JUMPS = """
maps:
  {name}:
    type: prog_array
    max_entries: 4
    entries: [{{key: 0, value: stages/stage_a}}, {{key: 1, value: stages/stage_b}}]{more}
"""


def own_jumps(world: World, version: int, name: str, more: str = "") -> None:
    world.put("stages", "stages", VERSION=version)
    world.write(
        JUMPS.format(name=name, more=more)
        + f"objects:\n  stages:\n    file: stages.bpf.o\n    pin_maps: {{jumps: {name}}}\n"
        f"    programs: {{enter: {{{ATTACH}}}}}\n"
    )


def guest_in_a_slot(world: World) -> None:
    """Somebody else's program stands in a slot that the manifest does not name."""
    own_jumps(world, 1, "jumps")
    assert world.apply().result is ReloadResult.OK
    found = kernel.pinned_map(str(world.pins / "jumps"))
    assert found
    with (
        kernel.holding(found[0]),
        kernel.open_object(world.build("stages", VERSION=9).read_bytes(), "guest") as guest,
    ):
        guest.load()
        program = guest.program_fd("stage_b").to_bytes(4, "little")
        kernel.map_update(found[0], (3).to_bytes(4, "little"), program)


def data(world: World, kept: str, rename: str = "", **macros: object) -> None:
    world.put("one", "globals", **macros)
    world.write(
        f"{rename}objects: {{one: {{file: one.bpf.o, pin_maps: {kept},"
        f" programs: {{count: {{{ATTACH}}}}}}}}}\n"
    )


def counter(world: World) -> None:
    world.put("one")
    world.write_counter("one")


def renamed(world: World) -> None:
    world.put("one", STEP=2)
    world.write(
        "maps: {tc/globals/counts: {rename_from: counts}}\n"
        "objects: {one: {file: one.bpf.o, pin_maps: {counts: tc/globals/counts},"
        f" programs: {{count: {{{ATTACH}}}}}}}}}\n"
    )


def tables(world: World, number: int, size: int) -> None:
    """The inner map is recreated, and so is what stands in the slot of the outer one."""
    text = "maps:\n"
    for name, entries in (("table_1", size), ("table_2", 2)):
        text += (
            f"  {name}: {{type: hash, key: u32, value: u64, max_entries: {entries},"
            f" on_mismatch: recreate, entries: [{{key: 0, value: {number}}}]}}\n"
        )
    inner = "{type: hash, key: u32, value: u64, max_entries: 2}"
    world.write(
        f"{text}  outer: {{type: hash_of_maps, key: u32, max_entries: 4, inner: {inner},\n"
        f"    entries: [{{key: 1, value: table_{number}}}, {{key: 7, value: table_1}}],"
        f" enforce: true}}\n"
    )


def shared(world: World, entries: int, more: str = "") -> None:
    """Pins for a group of readers."""
    if more:
        world.put("one", ENTRIES=entries, SECOND_MAP=8)
    else:
        world.put("one", ENTRIES=entries)
    world.write(
        'defaults: {on_mismatch: recreate, pin: {group: 1234, mode: "0640"}}\n'
        f"objects: {{one: {{file: one.bpf.o, pin_maps: [counts{more}],"
        f" programs: {{count: {{{ATTACH}}}}}}}}}\n"
    )


def own_limits(world: World, name: str, group: int) -> None:
    former = "" if name == "limits" else ", rename_from: limits"
    world.write(
        f"maps: {{{name}: {{type: hash, key: u32, value: u64, max_entries: 4{former},"
        f' pin: {{group: {group}, mode: "0640"}}}}}}\n'
    )


OWN = frozenset({Step.CREATE_MAP, Step.FILL_MAP, Step.STAGE_MAP, Step.COMMIT_MAP, Step.SWAP})
SCENARIOS = {
    "a private array": Scenario(
        lambda world: stages(world, 1, STATIC=1),
        lambda world: stages(world, 2, STATIC=1),
        frozenset({Step.STAGE_MAP, Step.PIN_PROGRAMS, Step.SWAP, Step.COMMIT_MAP}),
    ),
    "an array of the manifest's own": Scenario(
        guest_in_a_slot, lambda world: own_jumps(world, 2, "jumps"), OWN
    ),
    "an array that gets another name": Scenario(
        guest_in_a_slot,
        lambda world: own_jumps(world, 1, "leaps", "\n    rename_from: jumps"),
        OWN,
    ),
    "an array in a directory": Scenario(
        guest_in_a_slot,
        lambda world: own_jumps(world, 1, "tc/globals/leaps", "\n    rename_from: jumps"),
        OWN,
    ),
    "global data": Scenario(
        lambda world: data(world, "{.bss: zeroed, .data: preset}"),
        lambda world: data(world, "{.bss: zeroed, .data: preset}", MORE=1),
        frozenset({Step.STAGE_MAP, Step.CARRY_DATA, Step.SWAP, Step.COMMIT_MAP}),
    ),
    "global data that gets another name": Scenario(
        lambda world: data(world, "{.bss: zeroed, .data: preset}"),
        lambda world: data(
            world, "{.bss: cleared, .data: preset}", "maps: {cleared: {rename_from: zeroed}}\n",
            MORE=1,
        ),
        frozenset({Step.STAGE_MAP, Step.CARRY_DATA, Step.SWAP, Step.COMMIT_MAP}),
    ),
    "another name": Scenario(
        counter,
        renamed,
        frozenset({Step.LOAD_OBJECT, Step.PIN_PROGRAMS, Step.SWAP, Step.RENAME_MAP}),
    ),
    "rights of a new and of a recreated map": Scenario(
        lambda world: shared(world, 16),
        lambda world: shared(world, 32, ", second"),
        frozenset({Step.PIN_MAP, Step.STAGE_MAP, Step.SET_RIGHTS, Step.COMMIT_MAP}),
    ),
    "rights of a renamed map": Scenario(
        lambda world: own_limits(world, "limits", 0),
        lambda world: own_limits(world, "tc/globals/bounds", 1234),
        frozenset({Step.SET_RIGHTS, Step.RENAME_MAP}),
    ),
    "a slot of a map of maps": Scenario(
        lambda world: tables(world, 1, 2),
        lambda world: tables(world, 2, 3),
        frozenset(
            {Step.CREATE_MAP, Step.FILL_MAP, Step.STAGE_MAP, Step.WRITE_ENTRIES, Step.COMMIT_MAP}
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_step_of_a_change_to_maps_is_rolled_back(world: World, name: str) -> None:
    scenario = SCENARIOS[name]
    scenario.start(world)
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        assert world.reload(keeper).result is ReloadResult.OK
        send_datagrams(3)
        scenario.change(world)
        failed = fail_at_each_step(world, keeper, force=False)
        assert plan_now(world) == ()
        fail = FailAt(0)
        keeper._on_step = fail
        assert world.reload(keeper).result is ReloadResult.OK
        assert fail.steps == [], "there is something left to do"
    assert scenario.steps <= failed, f"never reached: {scenario.steps - failed}"


def hashes(world: World, kind: str, value: int) -> None:
    world.write(
        f"maps:\n  limits: {{type: {kind}, key: u32, value: u64, max_entries: 3, enforce: true,\n"
        f"    entries: [{{key: 1, value: {value}}}, {{key: 2, value: {value}}}]}}\n"
    )


@pytest.mark.parametrize("kind", ["hash", "percpu_hash"])
def test_entries_are_put_back_when_a_later_one_fails(world: World, kind: str) -> None:
    """The map is full when the second is to be written."""
    hashes(world, kind, 7)
    assert world.apply().result is ReloadResult.OK
    found = kernel.pinned_map(str(world.pins / "limits"))
    assert found
    with kernel.holding(found[0]) as fd:
        kernel.map_delete(fd, (2).to_bytes(4, "little"))
        for key in (8, 9):
            value = b"12345678" * kernel.possible_cpus()
            kernel.map_update(fd, key.to_bytes(4, "little"), value)
    before = world.everything()
    hashes(world, kind, 8)
    text = refused(world.apply())
    assert "cannot write entry 2 of map limits" in text and "the map is full" in text
    assert world.everything() == before


def test_the_entries_of_a_trie_are_put_back(world: World) -> None:
    """A look-up of an entry that is not there finds the one that covers it."""

    def routes(number: int, more: str = "") -> None:
        world.write(
            "maps:\n  routes: {type: lpm_trie, key_size: 8, value: u32, max_entries: 3,"
            " flags: [no_prealloc], enforce: true,\n"
            f"    entries: [{{key: 10.0.0.0/8, value: {number}}}{more}]}}\n"
        )

    routes(1)
    assert world.apply().result is ReloadResult.OK
    found = kernel.pinned_map(str(world.pins / "routes"))
    assert found
    with kernel.holding(found[0]) as fd:
        kernel.map_update(fd, bytes([8, 0, 0, 0, 11, 0, 0, 0]), bytes(4))
    before = world.everything()
    routes(1, ", {key: 10.1.0.0/16, value: 2}, {key: 10.2.0.0/16, value: 3}")
    assert "cannot write entry 10.2.0.0/16" in refused(world.apply())
    assert world.everything() == before
    assert len(contents(world.pins / "routes")) == 2


@pytest.mark.parametrize("rename", [False, True])
def test_an_exchange_is_undone_when_a_later_step_fails(world: World, rename: bool) -> None:
    """Forced: the programs take their directory after the array took its name."""
    objects = f"objects: {{stages: {{file: stages.bpf.o, programs: {{enter: {{{ATTACH}}}}}}}}}\n"
    world.put("stages", "stages")
    world.write(JUMPS.format(name="jumps", more="") + objects)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        if rename:
            more = "\n    rename_from: jumps"
            world.write(JUMPS.format(name="tc/globals/leaps", more=more) + objects)
        failed = fail_at_each_step(world, keeper, force=True)
        assert plan_now(world) == ()
    assert {Step.COMMIT_MAP, Step.COMMIT_PROGRAMS} <= failed


def test_a_private_array_that_cannot_be_removed_is_removed_next_time(world: World) -> None:
    """That comes last, and undoes nothing."""
    stages(world, 1, STATIC=1)
    assert world.apply().result is ReloadResult.OK
    stages(world, 2)

    def fail(step: Step, subject: object) -> None:
        if step is Step.REMOVE_ARRAY:
            raise Injected(f"do {step} of {subject}", 5)

    array = world.pins / "bpfkeeperd/arrays/stages/jumps"
    with world.keeper(fail) as keeper:
        assert "cannot do remove_array of bpfkeeperd/arrays" in refused(world.reload(keeper))
        assert array.exists()
    assert world.apply().done == (
        "unpin program array bpfkeeperd/arrays/stages/jumps (not used any more)",
    )
    assert not array.parent.parent.exists()
