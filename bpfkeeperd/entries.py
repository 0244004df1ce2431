"""What a manifest says, decoded: plain values, each with the place where it stands. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bpfkeeperd.errors import Mark
from bpfkeeperd.nodes import Node
from bpfkeeperd.pinrights import NO_RIGHTS, WantedRights
from bpfkeeperd.shapes import Shape
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, Target

DEFAULT_PIN_ROOT = "/sys/fs/bpf"
DEFAULT_METRICS_LISTEN = "127.0.0.1:9435"
DEFAULT_OBSERVE_MAX = 1000

NOWHERE = Mark(file="", line=0, column=0)


class MismatchPolicy(StrEnum):
    """What to do with a pinned map whose definition differs from the wanted one."""

    FAIL = "fail"
    """Touch nothing, hold back every object that uses the map, say what differs."""
    RECREATE = "recreate"
    """Make a new, empty map under the name: the contents are lost."""


class SwapChoice(StrEnum):
    """How a program that is attached is exchanged for its next version."""

    DEFAULT = "default"
    """As its hook allows."""
    EXACT = "exact"
    """Behind a stub where the hook would run both for a moment."""


@dataclass(frozen=True, slots=True)
class AttachEntry:
    target: Target
    before: str = ""
    """``OBJECT/PROGRAM``, or the kernel's name of somebody else's: it runs before that one."""
    after: str = ""
    take_over: bool = False
    """A program that somebody else attached there gives way."""
    mark: Mark = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class CounterEntry:
    """A counter in a kept map; what its key means depends on the map (see resolvehealth)."""

    map: str
    key: Node
    member: str | None = None
    offset: int | None = None
    """In bytes of the value, instead of a member."""
    size: int | None = None
    mark: Mark = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class HealthEntry:
    """How a program is judged after it was loaded or swapped in."""

    seconds: int
    moves: CounterEntry | None = None
    runs: bool = False
    """What must move is the program's own run count."""
    still: CounterEntry | None = None
    mark: Mark = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class ProgramEntry:
    """What the manifest wants of one program; without ``attach`` it is loaded and pinned only."""

    name: str
    attach: tuple[AttachEntry, ...] = ()
    type: str | None = None
    """A program type or a hook (see progtypes), where the section name says nothing."""
    health: HealthEntry | None = None
    mark: Mark = field(default=NOWHERE, compare=False)
    attach_auto: Mark | None = field(default=None)
    """``attach: auto``, and where that stands: the section name says where, too."""
    swap: SwapChoice = SwapChoice.DEFAULT


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    name: str
    file: str
    """Absolute; what was relative in the manifest is relative to the file it stands in."""
    sha256: str | None = None
    """64 lower-case hex digits: refuse any other file."""
    pin_maps: Mapping[str, str] = field(default_factory=dict)
    """ELF map name to pin name, besides the maps the object declares LIBBPF_PIN_BY_NAME."""
    programs: Mapping[str, ProgramEntry] = field(default_factory=dict)
    mark: Mark = field(default=NOWHERE, compare=False)
    pin_marks: Mapping[str, Mark] = field(default_factory=dict, compare=False)
    """For each ELF name in ``pin_maps``, where it stands."""
    register: Mapping[str, Mark] = field(default_factory=dict)
    """struct_ops maps that are registered, and where each stands."""


@dataclass(frozen=True, slots=True)
class ProgramRef:
    """A program that an object loads."""

    object: str
    program: str


@dataclass(frozen=True, slots=True)
class InterfaceRef:
    """A network interface, as the value of a devmap."""

    name: str
    netns: str | None = None
    """As of `InterfaceTarget`."""
    program: ProgramRef | None = None
    """Run on what is sent to the interface."""


@dataclass(frozen=True, slots=True)
class CgroupRef:
    """A cgroup, as the value of a CGROUP_ARRAY; the path is as that of `CgroupTarget`."""

    path: str


@dataclass(frozen=True, slots=True)
class MapRef:
    """A kept map by its pin name, as the value of a map-in-map."""

    name: str


@dataclass(frozen=True, slots=True)
class CpuRef:
    """The queue of a CPU, as the value of a CPUMAP."""

    queue_size: int
    program: ProgramRef | None = None


ContentValue = bytes | InterfaceRef | CgroupRef | ProgramRef | MapRef | CpuRef


@dataclass(frozen=True, slots=True)
class Content:
    """One entry that a map is to hold."""

    key: bytes | None
    """None in maps without keys: queues, stacks, bloom filters."""
    value: ContentValue
    mark: Mark = field(default=NOWHERE, compare=False)
    text: str = field(default="", compare=False)
    """What messages call it: the key as it is written, or the value where there is no key."""

    @property
    def target(self) -> Target | None:
        """The place outside of the keeper's reach that it names: it may come and go."""
        match self.value:
            case InterfaceRef(name, netns):
                return InterfaceTarget(name, netns)
            case CgroupRef(path):
                return CgroupTarget(path)
            case _:
                return None

    @property
    def program(self) -> ProgramRef | None:
        """The program that it names."""
        match self.value:
            case ProgramRef():
                return self.value
            case InterfaceRef(program=program) | CpuRef(program=program):
                return program
            case _:
                return None


@dataclass(frozen=True, slots=True)
class RawEntry:
    """An entry as it is written: what it means depends on the map (see contents)."""

    key: Node | None
    value: Node
    mark: Mark


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """A map of the manifest's own, created by the keeper."""

    type: str
    """As in bpftool and libbpf, lower case without the prefix: ``hash``, ``lru_hash``."""
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    map_extra: int = 0
    numa_node: int | None = None
    key: Shape | None = None
    """None where only the size is known."""
    value: Shape | None = None
    inner: "MapDefinition | None" = None
    """Of a map-in-map: what its inner maps are like."""
    contents: tuple[Content, ...] = ()


@dataclass(frozen=True, slots=True)
class PinEntry:
    """What is said of the rights of a pin; None: nothing."""

    owner: str | None = None
    """A name, or a number in digits."""
    group: str | None = None
    mode: int | None = None
    marks: Mapping[str, Mark] = field(default_factory=dict, compare=False)
    """Where each of its fields stands."""


NO_PIN = PinEntry()


@dataclass(frozen=True, slots=True)
class MapEntry:
    name: str
    """The pin name."""
    on_mismatch: MismatchPolicy
    definition: MapDefinition | None = None
    """None: an object declares the map."""
    entries: tuple[RawEntry, ...] = ()
    """For a map that an object declares: `contents.encode` makes them what that map can hold."""
    enforce: bool = False
    """Contents are written at each reload where they differ; else at creation only."""
    rename_from: str | None = None
    """The pin name under which the map was known before."""
    count_nonzero: bool = False
    """Of an array: its slots that are not zero are counted."""
    pin: PinEntry = NO_PIN
    mark: Mark = field(default=NOWHERE, compare=False)
    marks: Mapping[str, Mark] = field(default_factory=dict, compare=False)
    """Where each of its fields stands."""


@dataclass(frozen=True, slots=True)
class TlsEntry:
    """The files of an endpoint that speaks TLS; all absolute, as those of objects are."""

    certificate: str
    key: str
    """The same file where the manifest names none."""
    client_ca: str | None = None
    """None: clients need no certificate."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest with its drop-ins merged."""

    file: str
    """Absolute path of the main file."""
    pin_root: str = DEFAULT_PIN_ROOT
    metrics_listen: tuple[str, int] | None = ("127.0.0.1", 9435)
    """None: no metrics endpoint (``listen: none``)."""
    observe_most: int | None = None
    """Series of each kind for maps of others, at most; None: they are not shown."""
    program_statistics: bool = False
    """The kernel counts runs of programs while the daemon runs."""
    metrics_tls: TlsEntry | None = None
    """None: the endpoint speaks plain HTTP."""
    on_mismatch: MismatchPolicy = MismatchPolicy.FAIL
    """For maps without an entry of their own."""
    heal: bool = True
    """What drifts is put right without a reload."""
    pin: PinEntry = NO_PIN
    """For maps whose entry does not say it."""
    uids: Mapping[str, int] = field(default_factory=dict)
    """Of the users that own pins here, by what is written: see `accounts.with_accounts`."""
    gids: Mapping[str, int] = field(default_factory=dict)
    maps: Mapping[str, MapEntry] = field(default_factory=dict)
    objects: Mapping[str, ObjectEntry] = field(default_factory=dict)

    def policy(self, map_name: str) -> MismatchPolicy:
        """The policy of a map, by its pin name."""
        entry = self.maps.get(map_name)
        return entry.on_mismatch if entry else self.on_mismatch

    def rights(self, map_name: str) -> WantedRights:
        """Of a map's pin, by its name."""
        entry = self.maps.get(map_name)
        own = entry.pin if entry else self.pin
        if own is self.pin is NO_PIN:
            return NO_RIGHTS
        owner, group = own.owner or self.pin.owner, own.group or self.pin.group
        return WantedRights(
            uid=self.uids[owner] if owner else None,
            gid=self.gids[group] if group else None,
            mode=self.pin.mode if own.mode is None else own.mode,
            owner=owner or "",
            group=group or "",
        )
