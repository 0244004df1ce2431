"""What should be: maps, objects and attachments, as values. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from bpfkeeperd.entries import AttachEntry, Content, Manifest, MapDefinition, MapRef, MismatchPolicy
from bpfkeeperd.health import Health
from bpfkeeperd.hooks import PROG_TYPE_SCHED_CLS, Hook, HookKind, hook_of_section
from bpfkeeperd.hooks import STRUCT_OPS as STRUCT_OPS_HOOK
from bpfkeeperd.layout import LinkKey, escape, filter_handle, unescape
from bpfkeeperd.maptypes import PROG_ARRAY, STRUCT_OPS
from bpfkeeperd.pinrights import NO_RIGHTS, WantedRights
from bpfkeeperd.progtypes import ProgramKind
from bpfkeeperd.state import MapSpec, ObjectSpec
from bpfkeeperd.targets import (
    CLSACT_PRIORITY,
    NF_FAMILIES,
    NF_HOOKS,
    BinaryTarget,
    CgroupTarget,
    FunctionTarget,
    InterfaceTarget,
    IteratorTarget,
    MapTarget,
    NetfilterTarget,
    NetnsTarget,
    PerfEventTarget,
    Target,
    TracepointTarget,
    XdpMode,
)


@dataclass(frozen=True, slots=True)
class Attachment:
    """One program at one target: see `attachment`."""

    object: str
    program: str
    hook: Hook
    target: Target
    target_name: str
    """The target in one word."""
    key: LinkKey
    """Where the link is pinned."""
    before: str = ""
    after: str = ""
    """See `AttachEntry`."""
    take_over: bool = False
    exact: bool = False
    """Behind a stub."""

    @property
    def detail(self) -> str:
        """What the kernel says of its link beside the target's number (`LinkInfo.detail`), where
        that can be known beforehand; else empty."""
        match self.target:
            case TracepointTarget(name):
                return name.rpartition("/")[2]
            case IteratorTarget(name):
                return name
            case InterfaceTarget() if self.hook.prog_type == PROG_TYPE_SCHED_CLS:
                return filter_detail(self.handle, self.priority)
            case NetfilterTarget():
                return netfilter_detail(self.target, self.target.priority)
            case _:
                return ""

    @property
    def details(self) -> tuple[str, ...]:
        """All that it can say: programs of netfilter move to and fro between two priorities as they
        are swapped, because each takes one of them."""
        match self.target:
            case NetfilterTarget(priority=priority):
                return self.detail, netfilter_detail(self.target, priority + 1)
            case _:
                return (self.detail,)

    @property
    def handle(self) -> int:
        """Of its filter of tc."""
        return filter_handle(self.key)

    @property
    def priority(self) -> int:
        """Of its filter of tc."""
        match self.target:
            case InterfaceTarget(priority=int(priority)):
                return priority
            case _:
                return CLSACT_PRIORITY

    def __str__(self) -> str:
        return f"{self.object}/{self.program} at {self.hook.name} of {self.target_name}"


def attachment(
    object_name: str,
    program: str,
    hook: Hook,
    target: Target,
    entry: AttachEntry | None = None,
    *,
    exact: bool = False,
) -> Attachment:
    name = target_name(target)
    key = escape(object_name), escape(program), escape(name)
    before, after, take_over = (
        (entry.before, entry.after, entry.take_over) if entry else ("", "", False)
    )
    return Attachment(
        object_name, program, hook, target, name, key, before, after, take_over, exact
    )


REGISTERED, THE_KERNEL = "struct_ops", "the kernel"
"""Where a map is registered: as the name of its link's pin, and for people."""


def registration(object_name: str, elf_name: str, pin_name: str) -> Attachment:
    """A struct_ops map that the kernel calls the programs of: an attachment of the map, not of any
    program."""
    key = escape(object_name), escape(elf_name), REGISTERED
    return Attachment(object_name, elf_name, STRUCT_OPS_HOOK, MapTarget(pin_name), THE_KERNEL, key)


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """An object file that was read: its hash, and what it declares."""

    sha256: str
    spec: ObjectSpec


@dataclass(frozen=True, slots=True)
class WantedObject:
    name: str
    digest: str
    """Of the file and of every setting that changes what is loaded: names its directory."""
    source: ObjectSource
    maps: Mapping[str, str]
    """Kept maps: ELF name to pin name."""
    attachments: tuple[Attachment, ...]
    programs: tuple[str, ...]
    """Those that libbpf loads."""
    types: Mapping[str, ProgramKind] = field(default_factory=dict)
    """Of programs whose section name does not say it."""
    functions: Mapping[str, str] = field(default_factory=dict)
    """What programs are loaded for (fentry, LSM and the like), where the manifest says it."""
    health: Mapping[str, Health] = field(default_factory=dict)
    """By program: what it has to show after it was loaded."""
    fault: str = ""
    """Why the file of now cannot be used; programs and maps are then those last loaded."""


@dataclass(frozen=True, slots=True)
class WantedMap:
    name: str
    spec: MapSpec
    """In canonical form."""
    policy: MismatchPolicy
    users: tuple[str, ...]
    """Objects."""
    definition: MapDefinition | None = None
    """Set when the keeper creates the map itself."""
    contents: tuple[Content, ...] = ()
    """What the manifest has in it."""
    enforce: bool = False
    """The contents are put right on each reload, not only written into a new map."""
    former: str = ""
    """The name it is pinned under when it is not pinned under its own yet."""
    slotted: bool = False
    """An object fills it with programs of its own."""
    count_nonzero: bool = False
    """Of an array: its slots that are not zero are counted."""
    rights: WantedRights = NO_RIGHTS
    """Of its pin."""

    @property
    def fillers(self) -> tuple[str, ...]:
        """Objects whose programs stand in it."""
        programs = (content.program for content in self.contents)
        return tuple(dict.fromkeys(program.object for program in programs if program))

    @property
    def parts(self) -> tuple[str, ...]:
        """Maps that stand in it."""
        values = (content.value for content in self.contents)
        return tuple(dict.fromkeys(value.name for value in values if isinstance(value, MapRef)))

    @property
    def generational(self) -> bool:
        """Whether its contents are programs that go with it, so that it is renewed with them."""
        if self.spec.type == STRUCT_OPS:
            return True
        return self.spec.type == PROG_ARRAY and (self.slotted or bool(self.fillers))


@dataclass(frozen=True, slots=True)
class Desired:
    manifest: Manifest
    maps: Mapping[str, WantedMap]
    objects: Mapping[str, WantedObject]
    faults: Mapping[str, str]
    """Objects whose file cannot be used, and of which it is not known what was loaded."""
    matches: Mapping[Target, tuple[Target, ...]] = field(default_factory=dict)
    """Targets that are patterns, and what matched them; of objects that can be read, the
    attachments are at the matches then."""

    def unread_maps(self) -> list[str]:
        """Maps that the manifest names for objects that cannot be read."""
        names = [self.manifest.objects[name].pin_maps.values() for name in self.faults]
        return [name for pins in names for name in pins if name not in self.maps]

    def unread_attachments(self) -> Iterator[tuple[str, str, Target, LinkKey]]:
        """Object, program, target and link of what objects that cannot be read should serve."""
        for name in self.faults:
            for program in self.manifest.objects[name].programs.values():
                hook = hook_of_section(program.type) if program.type else None
                for attach in program.attach:
                    for one in self.matches.get(attach.target, (attach.target,)):
                        target = hook_target(one, hook)
                        key = escape(name), escape(program.name), escape(target_name(target))
                        yield name, program.name, target, key

    def unread_by_pin(self) -> frozenset[tuple[str, str]]:
        """Object and program, escaped, of what only objects that cannot be read tell the place of:
        it is in the section or registered, or at each CPU that is up."""
        found = set()
        for name in self.faults:
            entry = self.manifest.objects[name]
            found |= {(escape(name), escape(elf_name)) for elf_name in entry.register}
            for program in entry.programs.values():
                if program.attach_auto or any(is_each_cpu(one.target) for one in program.attach):
                    found.add((escape(name), escape(program.name)))
        return frozenset(found)

    @property
    def attachments(self) -> list[Attachment]:
        """Of all objects."""
        return [each for wanted in self.objects.values() for each in wanted.attachments]

    def link_keys(self) -> frozenset[LinkKey]:
        """Of all attachments."""
        return frozenset(
            attachment.key for wanted in self.objects.values() for attachment in wanted.attachments
        )


def is_each_cpu(target: Target) -> bool:
    """A perf event of all processes is counted on one CPU: there is one for each that is up."""
    return isinstance(target, PerfEventTarget) and target.cpu is None and target.pid is None


def filter_detail(handle: int, priority: int) -> str:
    """`LinkInfo.detail` of a filter of tc."""
    return f"{handle:#x}/{priority}"


def netfilter_detail(target: NetfilterTarget, priority: int) -> str:
    """`LinkInfo.detail` of a link of netfilter."""
    family, hook = NF_FAMILIES[target.family], NF_HOOKS[target.hook]
    return f"{family}/{hook}/{priority}/{int(target.defrag)}"


def hook_target(target: Target, hook: Hook | None) -> Target:
    """A target as a hook has it: a filter of tc always has a priority."""
    match target:
        case InterfaceTarget(priority=None) if hook and hook.kind is HookKind.CLSACT:
            return replace(target, priority=CLSACT_PRIORITY)
        case _:
            return target


def target_name(target: Target) -> str:
    """A target in one word; it becomes the name of the link's pin."""
    match target:
        case CgroupTarget(path):
            return f"cgroup:{path}"
        case InterfaceTarget(name, netns, mode, priority):
            how = "" if mode is XdpMode.AUTO else f"+{mode}"
            number = "" if priority is None else f"#{priority}"
            return f"interface:{name}{_at(netns)}{number}{how}"
        case NetnsTarget(netns):
            return f"netns:{netns}"
        case NetfilterTarget(family, hook, priority, netns, defrag):
            how = "+defrag" if defrag else ""
            return f"netfilter:{family}/{hook}{_at(netns)}#{priority}{how}"
        case MapTarget(name):
            return f"map:{name}"
        case FunctionTarget(name, offset):
            return f"function:{name}{_plus(offset)}"
        case TracepointTarget(name):
            return f"tracepoint:{name}"
        case BinaryTarget(path, symbol, offset, pid):
            place = f"{symbol}{_plus(offset)}" if symbol else f"+{offset}"
            return f"binary:{path}:{place}{_of_process(pid)}"
        case PerfEventTarget(event, frequency, period, cpu, pid):
            often = f"{frequency}Hz" if frequency else f"1/{period}"
            where = "" if cpu is None else f"@cpu{cpu}"
            return f"perf_event:{event}:{often}{where}{_of_process(pid)}"
        case IteratorTarget(name):
            return f"iterator:{name}"
        case _:
            assert_never(target)


def netns_of(key: LinkKey) -> str | None:
    """The network namespace in the name of a link's target; empty for none, None where the name is
    too long to tell."""
    if "~" in key[2]:
        return None
    name = unescape(key[2])
    for more in (XdpMode.NATIVE, XdpMode.GENERIC, "defrag"):
        name = name.removesuffix(f"+{more}")
    name = re.sub("#-?[0-9]+$", "", name)
    return name.partition("@")[2]


def _at(netns: str | None) -> str:
    return f"@{netns}" if netns else ""


def _plus(offset: int) -> str:
    return f"+{offset}" if offset else ""


def _of_process(pid: int | None) -> str:
    return "" if pid is None else f"@pid{pid}"
