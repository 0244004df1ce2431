"""What a manifest asks of the machine, as far as it can be told without trying. Pure."""

from collections.abc import Iterator, Mapping

from bpfkeeperd.entries import AttachEntry, CgroupRef, Manifest
from bpfkeeperd.findings import Needs
from bpfkeeperd.hooks import HookKind
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.resolveattach import attached_hooks
from bpfkeeperd.state import ObjectSpec
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, NetfilterTarget

_BY_PERF_EVENTS = (HookKind.TRACEPOINT, HookKind.KPROBE, HookKind.UPROBE, HookKind.PERF_EVENT)


def needs(manifest: Manifest, specs: Mapping[str, ObjectSpec]) -> Needs:
    """``specs`` are of the objects whose files can be read."""
    hooks: dict[str, str] = {}
    perf_events = uprobes = ""
    count = 0
    for name, spec in specs.items():
        for program, hook in attached_hooks(manifest.objects[name], spec).items():
            who = f"{name}/{program}"
            # Without TCX, filters of tc stand for it.
            hooks.setdefault(hook.name.replace("tcx/", "clsact/"), who)
            if hook.kind in _BY_PERF_EVENTS:
                perf_events = perf_events or who
            if hook.kind is HookKind.UPROBE:
                uprobes = uprobes or who
        count += 2 * len(spec.programs) + len(spec.maps)
    return Needs(
        hooks=hooks,
        map_types=dict(_map_types(manifest, specs)),
        cgroups=next(_at_cgroups(manifest), ""),
        other_netns=next(_in_other_netns(manifest), ""),
        perf_events=perf_events,
        uprobes=uprobes,
        take_over=next((name for name, one in _attached(manifest) if one.take_over), ""),
        descriptors=count + len(manifest.maps),
    )


def _attached(manifest: Manifest) -> Iterator[tuple[str, AttachEntry]]:
    for name, entry in manifest.objects.items():
        for program in entry.programs.values():
            for attach in program.attach:
                yield f"{name}/{program.name}", attach


def _at_cgroups(manifest: Manifest) -> Iterator[str]:
    yield from (name for name, one in _attached(manifest) if isinstance(one.target, CgroupTarget))
    for entry in manifest.maps.values():
        contents = entry.definition.contents if entry.definition else ()
        if any(isinstance(content.value, CgroupRef) for content in contents):
            yield f"map {entry.name}"


def _in_other_netns(manifest: Manifest) -> Iterator[str]:
    for name, one in _attached(manifest):
        match one.target:
            case InterfaceTarget(netns=str()) | NetfilterTarget(netns=str()):
                yield name
            case _:
                pass


def _map_types(manifest: Manifest, specs: Mapping[str, ObjectSpec]) -> Iterator[tuple[str, str]]:
    for entry in manifest.maps.values():
        if entry.definition:
            yield entry.definition.type, f"map {entry.name}"
    for name, spec in specs.items():
        for declared in spec.maps:
            yield type_name(declared.type), f"map {declared.name} of object {name}"
