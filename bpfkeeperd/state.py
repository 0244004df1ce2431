"""The values that flow through the pipeline: what should be, what is, and what came of it.

Spec = from a file, Info = from the kernel, Entry (entries.py) = from the manifest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.hooks import Hook
from bpfkeeperd.pinrights import Rights


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map as an object file or the manifest declares it. Sizes in bytes."""

    name: str
    """The full ELF name; the kernel keeps 15 characters of it."""
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    map_extra: int = 0
    numa_node: int = 0
    pinned: bool = False
    """Declared LIBBPF_PIN_BY_NAME, or pinned by tc's rules (`legacy`)."""
    pin_name: str = ""
    """Where below the pin root, if the object says so; empty: under its own name."""
    internal: bool = False
    """Global data (.rodata, .data, .bss, .kconfig): the name is that of its section."""
    slotted: bool = False
    """A program array that the object fills with programs of its own."""
    key_layout: str | None = None
    value_layout: str | None = None
    """One line per leaf, ``bit offset:bits:kind:name``; None without BTF."""
    inner: "MapSpec | None" = None


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A program as an object file declares it."""

    name: str
    section: str
    type: int
    """``enum bpf_prog_type``; 0 when the section name does not say."""
    expected_attach_type: int
    autoload: bool = True
    hook: Hook | None = None
    place: str = ""
    """What the section name says of the place: see `hooks.place_of_section`."""


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    maps: tuple[MapSpec, ...]
    programs: tuple[ProgramSpec, ...]
    pins: Mapping[str, str] = field(default_factory=dict)
    """Of an old object that tc would pin: map to pin name, ``tc/globals/NAME``."""


@dataclass(frozen=True, slots=True)
class MapInfo:
    """A map as the kernel has it."""

    id: int
    name: str
    """At most 15 characters."""
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    map_extra: int
    btf: tuple[int, int, int] = (0, 0, 0)
    """BTF ID, key type ID, value type ID; 0 for none."""


@dataclass(frozen=True, slots=True)
class InnerInfo:
    """What a map-in-map takes as its inner maps, as the kernel has it."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """A loaded program as the kernel has it."""

    id: int
    type: int
    map_ids: tuple[int, ...]
    name: str = ""
    """At most 15 characters."""
    tag: str = ""
    """Of its instructions, 16 hex digits: the same for the same program, whoever loaded it."""


@dataclass(frozen=True, slots=True)
class ProgramFigures:
    """What the kernel counts of a program."""

    id: int
    type: int
    instructions: int
    """Of the program as it runs."""
    verified: int
    """How many the verifier went through; 0 where the kernel does not tell (before 5.16)."""
    run_count: int
    """Since the program was loaded, while runs were counted."""
    run_time_ns: int
    misses: int
    """Runs that were left out because it ran on that CPU already; counted at all times (5.12)."""
    load_time_ns: int
    """By CLOCK_BOOTTIME."""
    memory_bytes: int
    """0 unless it was asked for."""


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """An attachment as the kernel has it."""

    id: int
    prog_id: int
    type: int
    target_id: int
    """cgroup ID, interface index, inode of a network namespace, map ID, `kernel.place_number` of a
    probe in a binary; 1 where there is no such thing; 0 when the target is gone."""
    attach_type: int
    detail: str = ""
    """What else tells one place from another: see `Attachment.detail`; empty where the kernel does
    not say."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One of the programs that share a hook, as the kernel has it."""

    prog_id: int
    link_id: int
    """0: attached without a link."""
    name: str
    """The kernel's; at most 15 characters."""


class MapIdChange(StrEnum):
    """Why the ID under a map's name changed."""

    RECREATED = "recreated"
    MIGRATED = "migrated"
    RENEWED = "renewed"
    """A program array or global data went along with the programs it belongs to."""
    REPLACED = "replaced"
    """By someone else: another map was pinned under the name."""
    LOST = "lost"
    """The pin went, nothing held the map any more, a new one was made."""
    REBOOT = "reboot"


@dataclass(frozen=True, slots=True)
class LastChange:
    """The last time that another map came under a name."""

    reason: MapIdChange
    old_id: int
    at: float
    """Unix time at which the new map was pinned there."""


class ReloadResult(StrEnum):
    """How a reload ended."""

    OK = "ok"
    FAILED = "failed"
    """Something was refused or rolled back; what it concerns stays as it was."""
    REJECTED = "rejected"
    """The manifest is wrong; nothing was touched."""


@dataclass(frozen=True, slots=True)
class InnerStatus:
    """One map in a map of maps, as last observed."""

    key: str
    """The slot's number, or the bytes of the key in hex."""
    id: int
    type: int
    max_entries: int


@dataclass(frozen=True, slots=True)
class MapStatus:
    """One map of the manifest, as last observed."""

    name: str
    id: int | None
    """None while nothing is pinned under the name."""
    type: int
    key_size: int
    value_size: int
    max_entries: int
    policy: MismatchPolicy
    reuses: int = 0
    """Reloads of this daemon that kept the map."""
    changes: Mapping[MapIdChange, int] = field(default_factory=dict)
    problem: str = ""
    inner: tuple[InnerStatus, ...] = ()
    """Of a map of maps: the maps in it, of its first 4096 slots."""
    flags: int = 0
    path: str = ""
    """Of its pin; empty while there is none."""
    made: bool = False
    """The keeper made the pin; else it was there before, or somebody else made it."""
    last_change: LastChange | None = None
    count_nonzero: bool = False
    """The slots of an array that are not zero are counted."""
    stored_id: int | None = None
    """Another map that the service manager kept under this name, and that somebody has to decide
    about."""
    other_pins: tuple[str, ...] = ()
    """Where else it is pinned; looked for only where that is shown."""
    pin: Rights | None = None
    """Whose the pin is; None while there is none."""


@dataclass(frozen=True, slots=True)
class AttachmentStatus:
    """One attachment that the manifest wants, as last observed."""

    object: str
    program: str
    hook: str
    target: str
    up: bool
    prog_id: int | None = None
    """None of a map that is registered, too."""
    link_id: int | None = None
    """None of what is attached without a link, too."""
    problem: str = ""
    adopted: bool = False
    """Its link was made by somebody else."""
    digest: str = ""
    """Of the object whose program serves it, as in the path of that program's pin; empty if it is
    none of the kept ones."""
    tag: str = ""
    """Of the program that serves it."""
    path: str = ""
    """Of the pin of its link, or of what stands for one; empty while there is none."""


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """One loaded program of the version of an object that is wanted."""

    object: str
    program: str
    type: int
    id: int
    tag: str
    digest: str
    path: str
    """Of its pin."""
    runs_path: str = ""
    """Of the pin of the stub that calls it, for which the kernel counts the runs; else empty."""


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """All reloads of this daemon, the start included."""

    results: Mapping[ReloadResult, int] = field(default_factory=dict)
    duration_seconds_sum: float = 0.0
    duration_buckets: tuple[tuple[float, int], ...] = ()
    """(upper bound in seconds, reloads that took at most that long), cumulative, the last +Inf."""
    last_success_timestamp_seconds: float | None = None
    last_result: ReloadResult | None = None


@dataclass(frozen=True, slots=True)
class HealStatus:
    """What was put right without a reload since the daemon started."""

    results: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Kind of drift to result (``ok``, ``failed``) to how often."""
    given_up: tuple[str, ...] = ()
    """What drifts again and again, or cannot be put right."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as the manifest has it."""

    kind: str
    """Of drift."""
    text: str
    """What a reload would do about it, or why it does nothing."""


@dataclass(frozen=True, slots=True)
class Status:
    """What metrics and ``status`` show: an immutable snapshot, made after each observation."""

    maps: tuple[MapStatus, ...] = ()
    attachments: tuple[AttachmentStatus, ...] = ()
    drift: Mapping[str, int] = field(default_factory=dict)
    """Kind of difference from the manifest to how many there are now."""
    reloads: ReloadStatus = ReloadStatus()
    differences: tuple[Difference, ...] = ()
    """What the numbers in ``drift`` stand for."""
    heals: HealStatus = HealStatus()
    programs: tuple[ProgramStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    message: str
    detail: str = ""
    """libbpf's or the verifier's whole log; may be empty."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one reload."""

    result: ReloadResult
    done: tuple[str, ...] = ()
    """One line for each action that was done."""
    failures: tuple[Failure, ...] = ()
    """What was tried and undone, or why the manifest was rejected."""
    refusals: tuple[str, ...] = ()
    """What the manifest wants and is not done, and why."""
    notes: tuple[str, ...] = ()
    kept_maps: int = 0
    duration_seconds: float = 0.0
    rolled_back: bool = False
    """All changes of the reload were undone."""
    swapping_seconds: float = 0.0
    """From before the first swap to after the last: some ran the new version, others the old."""

    @property
    def summary(self) -> str:
        """One line, as the service's status shows it."""
        if self.result is ReloadResult.REJECTED:
            return "manifest rejected: nothing was changed, what ran goes on running"
        wrong = len(self.failures) + len(self.refusals)
        parts = [
            counted(len(self.done), "action") if self.done else "nothing done",
            f"{counted(self.kept_maps, 'map')} kept",
        ]
        if wrong:
            parts.append(counted(wrong, "problem"))
        how = "applied" if self.result is ReloadResult.OK else "applied in part"
        if self.rolled_back:
            how = "rolled back"
        return f"{how} in {self.duration_seconds * 1000:.0f} ms: {', '.join(parts)}"


def counted(number: int, what: str) -> str:
    """``1 map``, ``2 maps``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
