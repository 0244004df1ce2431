"""Hooks of tracing as tests need them: a row for each, events that carry numbers, and what a kernel
cannot run."""

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.attachtrace import PERF_TYPE_TRACEPOINT
from bpfkeeperd.hooks import HookKind, hook_of_section
from tests.machine import map_value, run_program
from tests.scenario import World

# What WHERE of tests/bpf/trace.bpf.c can be.
TRACEPOINT, REGISTERS, PROBE_REGISTERS, ARGUMENTS, FUNCTION, RESULT, NOWHERE, READ = range(1, 9)
KERNEL_RESULT = 9
MAGIC = 0x42000000 | os.getpid()
"""Marks the events of this process."""
_ARCHITECTURE = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
PRCTL_ENTERED = "syscalls/sys_enter_prctl"
PREFIX = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}.get(platform.machine(), "")
PRCTL, LSEEK = f"{PREFIX}prctl", f"{PREFIX}lseek"


_PASSED_OVER = {
    HookKind.TRACEPOINT: f"tracepoint/{PRCTL_ENTERED}",
    HookKind.KPROBE: f"kprobe/{PRCTL}",
    HookKind.KPROBE_MULTI: f"kprobe.multi/{PRCTL}",
}
"""Kinds whose programs the kernel may pass over, each with the section of a control."""


@dataclass(frozen=True, slots=True)
class Row:
    """One hook, or one way to write a target of it."""

    section: str
    """``VICTIM`` stands for the path of the victim."""
    where: int
    attach: str = "auto"
    """As in the manifest; ``OFFSET`` stands for that of the victim's function in the file."""
    verdict: int = 0
    swaps: int = 0
    """How many times it is swapped under load; 0: its events carry no number."""
    needs: str = ""
    """A function of the kernel that is there if the place is one for such programs."""
    counted: bool = True
    """Each event is counted once, and not as often as time has it."""

    def __str__(self) -> str:
        place = "" if self.attach == "auto" else f" at {self.attach.strip('[{}]').split(':')[0]}"
        return f"{self.section.replace('VICTIM:', '')}{place}"


@dataclass(slots=True)
class Tracing:
    """One row's program in a world, and the victim."""

    world: World
    row: Row
    victim: Path
    made: int = 0
    """Numbers that were given to events so far."""
    control: int | None = None
    """The map in which the program of `beside_a_control` counts."""

    @contextmanager
    def beside_a_control(self) -> Iterator[None]:
        """A program that is never swapped is at the row's event meanwhile.

        It tells which events ran no program at all: on a CPU whose ``bpf_prog_active`` is raised,
        as it is for as long as anybody's update of a map is preempted there, trace_call_bpf() of
        the kernel passes over all programs of an event. Only kinds that it runs need a control.
        """
        hook = hook_of_section(self.row.section)
        if hook is None or hook.kind not in _PASSED_OVER:
            yield
            return
        section = _PASSED_OVER[hook.kind]
        macros = self.macros(section) | {"PROGRAM": "control", "SEEN": "control_seen"}
        data = self.world.build("trace", **macros).read_bytes()
        with ExitStack() as stack:
            beside = stack.enter_context(kernel.open_object(data, "control"))
            beside.load()
            stack.enter_context(kernel.holding(_at_prctl(hook.kind, beside.program_fd("control"))))
            self.control = beside.map_fd("control_seen")
            yield
            self.control = None

    def put(self, **macros: object) -> Path:
        """Compiles the program and puts it where the manifest finds it."""
        section = self.row.section.replace("VICTIM", str(self.victim))
        return self.world.put("one", "trace", **self.macros(section), **macros)

    def macros(self, section: str) -> dict[str, object]:
        sleeps = {"SLEEPS": 1} if section.partition("/")[0].endswith(".s") else {}
        return sleeps | {
            "HOOK": f'"{section}"',
            "WHERE": self.row.where,
            "MAGIC": MAGIC,
            "VERDICT": self.row.verdict,
            f"__TARGET_ARCH_{_ARCHITECTURE}": 1,
        }

    def write(self) -> None:
        offset = kernel_offset(self.victim)
        attach = self.row.attach.replace("VICTIM", str(self.victim)).replace("OFFSET", str(offset))
        kept = "" if self.row.where == READ else "pin_maps: [seen], "
        programs = f"programs: {{trace: {{attach: {attach}}}}}"
        self.world.write(f"objects: {{one: {{file: one.bpf.o, {kept}{programs}}}}}\n")

    def counts(self, first: int, count: int) -> list[int]:
        """How often each of these numbers was seen, but for those that ran no program."""
        found = kernel.pinned_map(str(self.world.pins / "seen"))
        assert found
        with kernel.holding(found[0]):
            seen = _counts(found[0], first, count)
        if self.control is None:
            return seen
        ran = _counts(self.control, first, count)
        passed_over = ran.count(0)
        assert passed_over <= max(2, count // 20), f"{passed_over} of {count} ran no program"
        return [times for times, control in zip(seen, ran, strict=True) if times or control]

    def seen(self, events: int = 3) -> list[int]:
        """Makes events; how often each was seen."""
        match self.row.where:
            case _ if self.row.section.startswith("perf_event"):
                return [self._sampled()]
            case n if n == READ:
                return [self._read()]
            case n if n == NOWHERE:
                return [self._tested()]
            case _:
                self.run(self.made, events)
                self.made += events
                return self.counts(self.made - events, events)

    def run(self, first: int, events: int) -> None:
        subprocess.run(
            [self.victim, str(MAGIC), str(first), str(events)],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def _total(self) -> int:
        value = map_value(self.world.pins / "seen", bytes(4), 4)
        return int.from_bytes(value or b"", "little")

    def _sampled(self) -> int:
        before = self._total()
        for _ in range(20):
            sum(range(200_000))
            if self._total() > before:
                return 1
        return 0

    def _tested(self) -> int:
        """A program that is run by BPF_PROG_TEST_RUN passes a tracepoint."""
        before = self._total()
        data = self.world.build("verdict", HOOK='"xdp"', VERDICT=2).read_bytes()
        with kernel.open_object(data, "tested") as tested:
            tested.load()
            run_program(tested.program_fd("program"), bytes(64))
        return self._total() - before

    def _read(self) -> int:
        """What the iterator writes, read from where its link is pinned; 0 when it is gone."""
        (path, *_) = [*self.world.link_ids(), ""]
        if not path:
            return 0
        with open(f"{self.world.layout.links}/{path}", "rb") as reader:
            return int(b"here\n" in reader.read())

    @contextmanager
    def load(self, microseconds: int) -> Iterator[Callable[[], int]]:
        """Events go on during the block, with a pause between them; what is yielded ends them and
        tells how many there were."""
        command = [str(self.victim), str(MAGIC), str(self.made), str(1 << 17), str(microseconds)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

            def end() -> int:
                output, _ = process.communicate()
                return int(output)

            yield end


def _counts(fd: int, first: int, count: int) -> list[int]:
    return [
        int.from_bytes(kernel.map_lookup(fd, key.to_bytes(4, "little"), 4) or b"", "little")
        for key in range(first, first + count)
    ]


def _at_prctl(kind: HookKind, prog_fd: int) -> int:
    """A link of a program to prctl(2)."""
    if kind is HookKind.KPROBE_MULTI:
        return kernel.kprobe_multi_link(prog_fd, [PRCTL], at_return=False)
    if kind is HookKind.KPROBE:
        probes = kernel.perf_source("kprobe")
        assert probes is not None
        event = kernel.perf_event_open((probes, 0), place=(PRCTL, 0), cpu=0)
    else:
        with open(f"{kernel.tracefs_mount()}/events/{PRCTL_ENTERED}/id", encoding="ascii") as file:
            event = kernel.perf_event_open((PERF_TYPE_TRACEPOINT, int(file.read())), cpu=0)
    with kernel.holding(event):
        return kernel.perf_link(prog_fd, event)


def kernel_offset(victim: Path) -> int:
    """Where the victim's function is in its file, as nm and readelf have it."""
    symbols = subprocess.run(["nm", victim], check=True, capture_output=True, text=True).stdout
    (address,) = [
        int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" victim_touch")
    ]
    segments = subprocess.run(
        ["readelf", "-lW", victim], check=True, capture_output=True, text=True
    )
    for line in segments.stdout.splitlines():
        fields = line.split()
        if fields and fields[0] == "LOAD":
            offset, start, size = int(fields[1], 16), int(fields[2], 16), int(fields[5], 16)
            if start <= address < start + size:
                return address - start + offset
    raise AssertionError("the function is in no segment")


def has_function(name: str) -> bool:
    """Whether the kernel has a function, as /proc/kallsyms lists them."""
    with open("/proc/kallsyms", encoding="ascii") as symbols:
        return any(line.split()[2] == name for line in symbols)
