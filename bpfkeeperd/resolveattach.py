"""Where the programs of an object are attached: hooks from sections and types, targets from the
manifest. Pure."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from bpfkeeperd.compare import Machine
from bpfkeeperd.desired import Attachment, WantedMap, attachment, hook_target, is_each_cpu
from bpfkeeperd.entries import AttachEntry, ObjectEntry, ProgramEntry, SwapChoice
from bpfkeeperd.errors import Problem
from bpfkeeperd.hooks import STRUCT_OPS, Hook, HookKind, SwapWay, hook_of_section
from bpfkeeperd.maptypes import SOCKHASH, SOCKMAP, type_name
from bpfkeeperd.state import ObjectSpec, ProgramSpec
from bpfkeeperd.stubcode import stub_fault
from bpfkeeperd.suggest import did_you_mean
from bpfkeeperd.targets import (
    FunctionTarget,
    InterfaceTarget,
    MapTarget,
    PerfEventTarget,
    Target,
    TracepointTarget,
    XdpMode,
)
from bpfkeeperd.traceplaces import fixed_at_load, place_fault, placed

_CLASSIFIERS = ("tc", "classifier", "action")


def program_attachments(
    object_name: str,
    entry: ProgramEntry,
    program: ProgramSpec,
    maps: Mapping[str, str],
    machine: Machine,
    problems: list[Problem],
) -> list[Attachment]:
    """What a program of an object is attached to; what is wrong with it goes into ``problems``.

    ``maps`` are the kept maps of the object: ELF name to pin name.
    """
    hook, place = program.hook, program.place
    origin = f'section "{program.section}"'
    if entry.type:
        hook, place = hook_of_section(entry.type), ""
        origin = f"type {entry.type}"
    exact = entry.swap is SwapChoice.EXACT
    found = []
    for attach in _entries(entry, hook, place, origin, problems):
        fault = _fault(attach, origin, program.section, hook)
        if not fault and hook:
            target = hook_target(_with_map(attach.target, maps), hook)
            fault = place_fault(hook, place, target, origin)
            behind_stub = _exact(hook, exact)
            if behind_stub and not fault:
                fault = _stub_fault(program, hook)
            found += [
                attachment(object_name, program.name, hook, one, attach, exact=behind_stub)
                for one in _each_cpu(target, machine)
            ]
        if fault:
            message = f"program {program.name} cannot be attached here"
            problems.append(Problem(attach.mark, message, fault))
    if hook and fixed_at_load(hook) and len(found) > 1:
        message = f"program {program.name} cannot be attached to {len(found)} places"
        remedy = f"a program of {origin} is loaded for one: use a program for each"
        problems.append(Problem(entry.mark, message, remedy))
    return found


def map_fault(
    attachment: Attachment, maps: Mapping[str, WantedMap], unread: Collection[str]
) -> str:
    """What is wrong with the map that is the target; ``unread`` are maps of which nobody knows."""
    target = attachment.target
    if not isinstance(target, MapTarget) or target.name in unread:
        return ""
    found = maps.get(target.name)
    if found is None:
        hint = did_you_mean(target.name, maps)
        return f"no map {target.name} is kept{f': {hint}' if hint else ''}"
    of_sockets = found.spec.type in (SOCKMAP, SOCKHASH)
    if attachment.hook.kind is HookKind.SOCKMAP and not of_sockets:
        return (
            f"{target.name} is of type {type_name(found.spec.type)}: it takes a sockmap or a"
            " sockhash"
        )
    return ""


def attached_hooks(entry: ObjectEntry, spec: ObjectSpec) -> dict[str, Hook]:
    """The hooks of the programs of an object that are to be attached anywhere, and of what is
    registered."""
    found = dict.fromkeys(entry.register, STRUCT_OPS)
    for program in spec.programs:
        known = entry.programs.get(program.name)
        if known and (known.attach or known.attach_auto):
            hook = hook_of_section(known.type) if known.type else program.hook
            if hook:
                found[program.name] = hook
    return found


def _exact(hook: Hook, asked: bool) -> bool:
    """Whether an attachment is behind a stub: where the hook takes nothing else, or if asked where
    it would run both for a moment."""
    way = hook.rules.swap
    return way is SwapWay.STUB or (asked and way is SwapWay.OVERLAP)


def _stub_fault(program: ProgramSpec, hook: Hook) -> str:
    """libbpf makes a program sleepable by its section, whatever the manifest says of its type."""
    of_section = hook_of_section(program.section)
    why = stub_fault(of_section if of_section and of_section.sleepable else hook)
    return f"swap: exact is not possible: {why}: leave it out" if why else ""


def load_function(program: ProgramSpec, found: Sequence[Attachment]) -> str:
    """The function that a program has to be loaded for, where its section does not say."""
    for one in found:
        if fixed_at_load(one.hook) and isinstance(one.target, FunctionTarget | TracepointTarget):
            said = one.hook == program.hook and program.place == one.target.name
            return "" if said else one.target.name
    return ""


def _entries(
    entry: ProgramEntry, hook: Hook | None, place: str, origin: str, problems: list[Problem]
) -> Iterator[AttachEntry]:
    """The attachments that are written, and the one that ``attach: auto`` stands for."""
    yield from entry.attach
    if entry.attach_auto is None:
        return
    target = placed(hook, place) if hook else None
    if target:
        yield AttachEntry(target, mark=entry.attach_auto)
        return
    message = f"program {entry.name} cannot be attached by itself"
    remedy = f"its {origin} does not say where"
    if hook and hook.rules.write:
        remedy += f": write attach: [{{{hook.rules.write}}}]"
    problems.append(Problem(entry.attach_auto, message, remedy))


def _with_map(target: Target, maps: Mapping[str, str]) -> Target:
    """A map that is named as the object names it gets the name of its pin."""
    match target:
        case MapTarget(name):
            return replace(target, name=maps.get(name, name))
        case _:
            return target


def _each_cpu(target: Target, machine: Machine) -> list[Target]:
    if isinstance(target, PerfEventTarget) and is_each_cpu(target):
        return [replace(target, cpu=cpu) for cpu in machine.online_cpus]
    return [target]


def _fault(attach: AttachEntry, origin: str, section: str, hook: Hook | None) -> str:
    """Why a program cannot be attached; ``origin`` is what said the hook, or should have."""
    if hook is None and section.removeprefix("?").split("/")[0] in _CLASSIFIERS:
        return (
            'write SEC("tcx/ingress") or SEC("tcx/egress"), which say where it is attached, or'
            " type: tcx/ingress beside attach (clsact/ingress for a filter of tc)"
        )
    if hook is None:
        return (
            f"its {origin} names no hook that a program is attached to from here: leave out"
            " attach and it is loaded and pinned"
            f"{', or write the hook, as in type: tcx/ingress' if origin.startswith('type') else ''}"
        )
    if not isinstance(attach.target, hook.rules.targets):
        return f"its {origin} belongs to {hook.rules.noun}: write {hook.rules.write}"
    return _option_fault(attach, hook)


def _option_fault(attach: AttachEntry, hook: Hook) -> str:
    kind = hook.kind
    match attach.target:
        case InterfaceTarget(mode=mode) if (
            hook.kind is not HookKind.XDP and mode is not XdpMode.AUTO
        ):
            return "mode is for XDP programs only: leave it out"
        case InterfaceTarget(priority=int()) if kind is not HookKind.CLSACT:
            return "priority is for clsact: leave it out; before and after place tcx and netkit"
        case _:
            pass
    if (attach.before or attach.after) and kind not in (HookKind.TCX, HookKind.NETKIT):
        return "before and after are for tcx and netkit programs: leave them out"
    if attach.before and attach.after:
        return "before and after are two places: keep one"
    return ""
