"""Places of tracing, as sections name them and as the manifest does."""

import pytest

from bpfkeeperd.compare import Machine
from bpfkeeperd.entries import AttachEntry, ProgramEntry
from bpfkeeperd.errors import Mark, Problem
from bpfkeeperd.hooks import hook_of_section, place_of_section
from bpfkeeperd.resolveattach import load_function, program_attachments
from bpfkeeperd.state import ProgramSpec
from bpfkeeperd.targets import (
    BinaryTarget,
    FunctionTarget,
    IteratorTarget,
    MapTarget,
    PerfEventTarget,
    Target,
    TracepointTarget,
)

MARK = Mark("test.yaml", 1, 1)
MACHINE = Machine(possible_cpus=4, page_size=4096, online_cpus=(0, 2))


def program(section: str) -> ProgramSpec:
    hook = hook_of_section(section)
    return ProgramSpec("p", section, 0, 0, hook=hook, place=place_of_section(section))


def resolved(
    section: str, *targets: Target, kind: str = ""
) -> tuple[list[Target], str, list[Problem]]:
    """Targets, what the program is loaded for, problems; without a target, ``attach: auto``."""
    problems: list[Problem] = []
    entry = ProgramEntry(
        "p",
        tuple(AttachEntry(target, mark=MARK) for target in targets),
        mark=MARK,
        type=kind,
        attach_auto=None if targets else MARK,
    )
    found = program_attachments("one", entry, program(section), {}, MACHINE, problems)
    return [one.target for one in found], load_function(program(section), found), problems


@pytest.mark.parametrize(
    ("section", "target"),
    [
        ("tracepoint/sched/sched_switch", TracepointTarget("sched/sched_switch")),
        ("tp/sched/sched_switch", TracepointTarget("sched/sched_switch")),
        ("raw_tp/sched_switch", TracepointTarget("sched_switch")),
        ("raw_tp.w/bpf_test_finish", TracepointTarget("bpf_test_finish")),
        ("tp_btf/sched_switch", TracepointTarget("sched_switch")),
        ("fentry/tcp_connect", FunctionTarget("tcp_connect")),
        ("fexit.s/tcp_connect", FunctionTarget("tcp_connect")),
        ("lsm/file_open", FunctionTarget("file_open")),
        ("kprobe/tcp_connect", FunctionTarget("tcp_connect")),
        ("kprobe/tcp_connect+0x10", FunctionTarget("tcp_connect", 16)),
        ("ksyscall/prctl", FunctionTarget("prctl")),
        ("kprobe.multi/tcp_*", FunctionTarget("tcp_*")),
        ("uprobe//bin/sh:main", BinaryTarget("/bin/sh", "main")),
        ("uprobe.s//bin/sh:main+4", BinaryTarget("/bin/sh", "main", 4)),
        ("uretprobe//a:b:main", BinaryTarget("/a:b", "main")),
        ("uprobe.multi//bin/sh:m*", BinaryTarget("/bin/sh", "m*")),
        ("iter/task", IteratorTarget("task")),
        ("iter.s/task", IteratorTarget("task")),
    ],
)
def test_a_section_that_names_its_place(section: str, target: Target) -> None:
    assert resolved(section) == ([target], "", [])


@pytest.mark.parametrize(
    "section",
    [
        *("tracepoint", "fentry", "lsm", "kprobe", "uprobe", "iter", "perf_event"),
        *(
            "kprobe/f+zz",
            "kprobe/f+-1",
            f"kprobe/f+{1 << 70}",
            "uprobe/main",
            "uprobe/libc.so.6:main",
        ),
        *("uprobe//bin/sh:main+zz", "iter/bpf_map_elem", "iter/bpf_sk_storage_map"),
    ],
)
def test_a_section_that_does_not(section: str) -> None:
    targets, _, (problem,) = resolved(section)
    assert targets == []
    assert "does not say where: write attach: [{" in problem.remedy


@pytest.mark.parametrize(
    ("section", "target", "fault"),
    [
        ("fentry/f", FunctionTarget("g"), "names another place: write attach: auto"),
        ("tp_btf/f", TracepointTarget("g"), "names another place: write attach: auto"),
        ("fentry", FunctionTarget("f", 4), "is at a function's beginning or end"),
        ("kretprobe", FunctionTarget("f", 4), "is at a function's beginning or end"),
        ("ksyscall", FunctionTarget("f", 4), "is at a function's beginning or end"),
        ("kprobe.multi", FunctionTarget("f", 4), "is at a function's beginning or end"),
        ("kprobe", FunctionTarget("f*"), "only kprobe.multi and kretprobe.multi take a pattern"),
        ("fentry", FunctionTarget("f*"), "only kprobe.multi and kretprobe.multi take a pattern"),
        (
            "uprobe",
            BinaryTarget("/a", "f*"),
            "only uprobe.multi and uretprobe.multi take a pattern",
        ),
        ("tracepoint", TracepointTarget("f"), "write tracepoint: GROUP/f"),
        ("tracepoint/f", TracepointTarget("f"), "write tracepoint: GROUP/f"),
        ("raw_tp", TracepointTarget("g/f"), "has no group: write tracepoint: f"),
        ("iter/task", MapTarget("m"), "goes through no map: write attach: auto"),
    ],
)
def test_what_a_hook_cannot_be_at(section: str, target: Target, fault: str) -> None:
    (problem,) = resolved(section, target)[2]
    assert fault in problem.remedy


@pytest.mark.parametrize(
    ("section", "target"),
    [
        ("kprobe", FunctionTarget("f", 4)),
        ("kprobe.multi", FunctionTarget("f*")),
        ("uprobe.multi", BinaryTarget("/a", "f*")),
        ("iter/bpf_map_elem", MapTarget("m")),
        ("tracepoint/a/b", TracepointTarget("c/d")),
    ],
)
def test_what_a_hook_can_be_at(section: str, target: Target) -> None:
    assert resolved(section, target) == ([target], "", [])


def test_what_a_program_is_loaded_for() -> None:
    f, g = FunctionTarget("f"), FunctionTarget("g")
    assert resolved("fentry", f)[1] == "f"
    assert resolved("fentry/f", f)[1] == ""
    assert resolved("some/thing", f, kind="lsm")[1] == "f"
    assert resolved("fentry/g", f, kind="fexit")[1] == "f"
    assert resolved("kprobe", f)[1] == ""
    (problem,) = resolved("fentry", f, g)[2]
    assert problem.message == "program p cannot be attached to 2 places"


def test_a_perf_event_of_all_processes_is_one_for_each_cpu_that_is_up() -> None:
    every = PerfEventTarget("cpu-clock", 99)
    assert resolved("perf_event", every)[0] == [
        PerfEventTarget("cpu-clock", 99, cpu=0),
        PerfEventTarget("cpu-clock", 99, cpu=2),
    ]
    for one in (PerfEventTarget("cpu-clock", 99, cpu=1), PerfEventTarget("cpu-clock", 99, pid=7)):
        assert resolved("perf_event", one)[0] == [one]
