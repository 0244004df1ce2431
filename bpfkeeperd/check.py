"""`check`: whether a manifest and its objects are right, and the kernel has the hooks they need, as
far as it can be asked with the privileges at hand. Nothing is loaded to stay."""

from collections.abc import Mapping
from dataclasses import dataclass

from bpfkeeperd import kernel
from bpfkeeperd.desired import ObjectSource
from bpfkeeperd.elf import ElfFacts, read_elf
from bpfkeeperd.entries import Manifest, TlsEntry
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.manifest import read_manifest
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.resolve import resolve
from bpfkeeperd.sources import Sources, lacking_hooks, read_sources
from bpfkeeperd.state import MapSpec, ObjectSpec, counted
from bpfkeeperd.trust import NOBODY_ELSE, Trust


@dataclass(frozen=True, slots=True)
class ObjectReport:
    file: str
    sha256: str
    elf: ElfFacts
    spec: ObjectSpec
    kept_maps: Mapping[str, str]
    """ELF name to pin name."""
    types: Mapping[str, str]
    """Of programs to which the manifest gives a type or a hook."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a manifest would keep."""

    file: str
    objects: Mapping[str, ObjectReport]
    maps: tuple[str, ...]
    faults: Mapping[str, str]
    """Objects that cannot be used, and why."""
    metrics_fault: str = ""
    """Why the files of `metrics.tls` cannot be used."""
    metrics_warning: str = ""

    def __str__(self) -> str:
        parts = [counted(len(self.objects), "object"), counted(len(self.maps), "kept map")]
        if self.faults:
            parts.append(f"{counted(len(self.faults), 'object')} cannot be used")
        lines = [f"{self.file}: {', '.join(parts)}"]
        for name, report in self.objects.items():
            lines.append(f"object {name}: {report.file} (license {report.elf.license or 'none'})")
            for spec in report.spec.maps:
                kept = report.kept_maps.get(spec.name)
                lines.append(f"  map {_map_text(spec)}{f', kept as {kept}' if kept else ''}")
            for program in report.spec.programs:
                given = report.types.get(program.name)
                type_text = f", type {given}" if given else ""
                lines.append(f"  program {program.name} (section {program.section}{type_text})")
        lines += [f"object {name}: {fault}" for name, fault in self.faults.items()]
        lines += [f"metrics: {text}" for text in (self.metrics_fault, self.metrics_warning) if text]
        return "\n".join(lines)


def check_manifest(path: str, trust: Trust = NOBODY_ELSE) -> CheckReport:
    """Reads a manifest and its objects, and puts them together.

    Raises:
        ManifestError: everything that is wrong with the manifest.
    """
    manifest = read_manifest(path, trust)
    with read_sources(manifest, {}, trust) as sources:
        return _report(manifest, sources)


def _report(manifest: Manifest, sources: Sources) -> CheckReport:
    desired = resolve(
        manifest, sources.found, kernel.machine(), lacking=lacking_hooks(manifest, sources)
    )
    faults = dict(desired.faults)
    objects = {}
    for name, source in sources.found.items():
        if isinstance(source, ObjectSource) and name in desired.objects:
            try:
                elf = read_elf(sources.data[name])
            except KeeperError as error:
                faults[name] = str(error)
                continue
            entry = manifest.objects[name]
            objects[name] = ObjectReport(
                entry.file,
                source.sha256,
                elf,
                source.spec,
                desired.objects[name].maps,
                {program.name: program.type for program in entry.programs.values() if program.type},
            )
    metrics_fault, metrics_warning = _check_tls(manifest.metrics_tls)
    return CheckReport(
        manifest.file, objects, tuple(desired.maps), faults, metrics_fault, metrics_warning
    )


def _check_tls(tls: TlsEntry | None) -> tuple[str, str]:
    if tls is None:
        return "", ""
    from bpfkeeperd.tlsfiles import judge

    return judge(tls)


def _map_text(spec: MapSpec) -> str:
    return (
        f"{spec.name} ({type_name(spec.type)}, key {spec.key_size} B, value {spec.value_size} B,"
        f" max_entries {spec.max_entries})"
    )
