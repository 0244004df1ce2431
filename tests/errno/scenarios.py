"""What goes on while calls fail: what is there before, what is asked for, and how."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from bpfkeeperd import kernel
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.steps import Step, no_failpoint
from tests.scenario import World

KILLED = 77
"""Exit status of a process that ended itself in a step."""


class Act(StrEnum):
    RELOAD = "reload"
    """By a keeper that runs."""
    START = "start"
    """A keeper starts, and reloads."""
    HEAL = "heal"
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True)
class Scenario:
    act: Act
    begin: Callable[[World], None] | None
    """Files of what runs before; without it nothing does."""
    change: Callable[[World], None]
    """Files of what is asked for, or what else happens."""
    changes: tuple[frozenset[str], ...] = ()
    """Objects and maps that are one change: none of them is done without the others."""
    killed_at: Step | None = None
    """Another keeper dies there before."""
    needs_netns: bool = False


def nothing(world: World) -> None:
    """The files stay as they are."""


def _value(world: World, name: str, key: int, number: int) -> None:
    """Somebody writes a kept map."""
    found = kernel.pinned_map(str(world.pins / name))
    if found:
        with kernel.holding(found[0]) as fd:
            size = found[1].value_size
            kernel.map_update(fd, key.to_bytes(4, "little"), number.to_bytes(size, "little"))


# ---- maps, and programs of cgroups ----

FIRST = """
maps:
  counts: {on_mismatch: recreate}
  limits: {type: hash, key: u32, value: u64, max_entries: 4, entries: [{key: 1, value: 7}]}
  quotas: {type: hash, key: u32, value: u64, max_entries: 4, entries: [{key: 1, value: 7}]}
objects:
  one:
    {file: one.bpf.o, pin_maps: [counts], programs: {count: {attach: [{cgroup: CGROUP}]}}}
  two:
    {file: two.bpf.o, pin_maps: [counts], programs: {former: {attach: [{cgroup: CGROUP}]}}}
  three:
    {file: three.bpf.o, pin_maps: [others], programs: {count: {attach: [{cgroup: CGROUP}]}}}
  four:
    {file: four.bpf.o, pin_maps: [fours], programs: {count: {attach: [{cgroup: CGROUP}]}}}
"""
SECOND = """
maps:
  counts: {on_mismatch: recreate}
  tc/globals/bounds: {type: hash, key: u32, value: u64, max_entries: 4, rename_from: limits}
  quotas: {type: hash, key: u32, value: u64, max_entries: 4, entries: [{key: 1, value: 8}],
           enforce: true}
objects:
  one:
    file: one.bpf.o
    pin_maps: [counts]
    programs: {count: {attach: [{cgroup: CGROUP/child}, {cgroup: CGROUP}]}}
  two:
    {file: two.bpf.o, pin_maps: [counts], programs: {latter: {attach: [{cgroup: CGROUP}]}}}
  three:
    {file: three.bpf.o, pin_maps: [others], programs: {count: {attach: [{cgroup: CGROUP}]}}}
"""
RECREATED = frozenset({"object one", "object two", "map counts"})
RENAMED = frozenset({"map limits", "map tc/globals/bounds"})


def first_maps(world: World) -> None:
    (world.cgroup / "child").mkdir(exist_ok=True)
    world.put("one")
    world.put("two", PROGRAM="former")
    world.put("three", MAP="others")
    world.put("four", MAP="fours")
    world.write(FIRST)


def second_maps(world: World) -> None:
    """One and two get a new map in place of theirs, one a second target, two a program that takes
    over a link; three is swapped, four goes; a map gets another name, one another entry."""
    _value(world, "others", 1, 5)
    world.put("one", STEP=2, ENTRIES=32)
    world.put("two", STEP=2, ENTRIES=32, PROGRAM="latter")
    world.put("three", STEP=2, MAP="others")
    world.write(SECOND)


def lose_pins(world: World) -> None:
    """Of a map, a link and a program."""
    os.unlink(world.pins / "others")
    (link,) = world.layout_files("links/three")
    (program,) = world.layout_files("objects/three")
    os.unlink(link)
    os.unlink(program)


# ---- what has maps, programs and entries of its own ----

NEEDY = """
maps:
  inside: {type: hash, key: u32, value: u32, max_entries: 10, entries: [{key: 0, value: 9}]}
  by_number: {entries: [{key: 3, value: inside}]}
  .bss: {on_mismatch: recreate}
objects:
  five: {file: five.bpf.o, pin_maps: [whole], programs: {enter: {attach: [{cgroup: CGROUP}]}}}
  six: {file: six.bpf.o, pin_maps: {.bss: zeroed}, programs: {count: {attach: [{cgroup: CGROUP}]}}}
  seven: {file: seven.bpf.o, pin_maps: [by_number], programs: {look: {attach: [{cgroup: CGROUP}]}}}
""".replace("  .bss: {on_mismatch: recreate}\n", "")


def first_arrays(world: World) -> None:
    world.put("five", "stages", VERSION=1, STATIC=1)
    world.put("six", "globals")
    world.put("seven", "nested")
    world.write(NEEDY)


def second_arrays(world: World) -> None:
    """Five calls through a new array, six has new global data, seven other entries."""
    _value(world, "whole", 2, 5)
    world.put("five", "stages", VERSION=2, STATIC=1)
    world.put("six", "globals", MORE=1)
    world.write(NEEDY.replace("key: 3, value: in", "key: 4, value: in"))


# ---- programs of tracepoints, behind a stub and beside each other ----

TRACED = """
objects:
  eight:
    file: eight.bpf.o
    pin_maps: {seen: eights}
    programs: {NAME: {attach: auto, swap: exact}}
  nine: {file: nine.bpf.o, pin_maps: {seen: nines}, programs: {program: {attach: auto}}}
"""
TRACE_HOOK = {"HOOK": '"raw_tp/sys_enter"', "SYSCALL": 121, "PID": 1}


def first_traced(world: World) -> None:
    world.put("eight", "exact", PROGRAM="former", **TRACE_HOOK)
    world.put("nine", "exact", **TRACE_HOOK)
    world.write(TRACED.replace("NAME", "former"))


def second_traced(world: World) -> None:
    """A program takes over another's stub; the other overlaps."""
    world.put("eight", "exact", PROGRAM="latter", VERSION=2, **TRACE_HOOK)
    world.put("nine", "exact", VERSION=2, **TRACE_HOOK)
    world.write(TRACED.replace("NAME", "latter"))


# ---- programs of the network stack ----

NET = """
objects:
  ten:
    file: ten.bpf.o
    pin_maps: {counts: tens}
    programs: {count: {attach: [{interface: veth0, netns: HERE, mode: generic}]}}
  eleven:
    file: eleven.bpf.o
    pin_maps: {counts: elevens}
    programs: {count: {attach: [{interface: veth0, netns: HERE}]}}
  twelve:
    file: twelve.bpf.o
    pin_maps: {counts: twelves}
    programs: {count: {attach: [{netns: HERE}]}}
"""


def _net(world: World, step: int) -> None:
    world.put("ten", HOOK='"xdp"', VERDICT=2, STEP=step)
    world.put("eleven", HOOK='"clsact/ingress"', VERDICT=-1, STEP=step)
    world.put("twelve", HOOK='"sk_lookup"', VERDICT=1, STEP=step)
    world.write(NET.replace("HERE", os.environ.get("ERRNO_NETNS", "nowhere")))


def first_net(world: World) -> None:
    _net(world, 1)


def second_net(world: World) -> None:
    _net(world, 2)


SCENARIOS = {
    "start": Scenario(Act.START, None, first_maps),
    "start-arrays": Scenario(Act.START, None, first_arrays),
    "start-traced": Scenario(Act.START, None, first_traced),
    "start-net": Scenario(Act.START, None, first_net, needs_netns=True),
    "reload": Scenario(Act.RELOAD, first_maps, second_maps, (RECREATED, RENAMED)),
    "reload-arrays": Scenario(
        Act.RELOAD,
        first_arrays,
        second_arrays,
        (frozenset({"object six", "map zeroed"}), frozenset({"object seven", "map by_number"})),
    ),
    "reload-traced": Scenario(Act.RELOAD, first_traced, second_traced),
    "reload-net": Scenario(Act.RELOAD, first_net, second_net, needs_netns=True),
    "restart": Scenario(Act.START, first_maps, nothing),
    "killed": Scenario(
        Act.START,
        first_maps,
        second_maps,
        (RECREATED, RENAMED),
        killed_at=Step.COMMIT_MAP,
    ),
    "heal": Scenario(Act.HEAL, first_maps, lose_pins),
    "unload": Scenario(Act.UNLOAD, first_maps, nothing),
}


def die_at(world: World, step: Step) -> None:
    """A keeper that is killed in a reload."""
    process = os.fork()
    if process == 0:
        with suppress(BaseException):

            def on_step(reached: Step, subject: object) -> None:
                if reached is step:
                    os._exit(KILLED)

            with world.keeper(on_step) as keeper:
                keeper.reload()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == KILLED, f"{step} never reached"


def new_keeper(world: World) -> Keeper:
    return Keeper(str(world.manifest_file), world.state_directory, no_failpoint)
