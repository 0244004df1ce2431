"""The manifest: from the bytes of its files to a Manifest, or to every problem in them at once."""

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence

from bpfkeeperd import fields
from bpfkeeperd.accounts import with_accounts
from bpfkeeperd.decode import Member, Record, Value, decode
from bpfkeeperd.decodetargets import TARGET_MAKERS
from bpfkeeperd.desired import target_name
from bpfkeeperd.entries import (
    AttachEntry,
    Manifest,
    MismatchPolicy,
    ObjectEntry,
    ProgramEntry,
    SwapChoice,
    TlsEntry,
)
from bpfkeeperd.errors import KeeperError, ManifestError, Mark, UntrustedError
from bpfkeeperd.fieldkinds import Struct
from bpfkeeperd.healthentry import health_entry
from bpfkeeperd.nodes import Faults, MappingNode, Node, Place, ScalarNode
from bpfkeeperd.ownmaps import map_entries, pin_entry
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, Target
from bpfkeeperd.trust import NOBODY_ELSE, Files, Trust
from bpfkeeperd.values import absolute, host_and_port, short, shown
from bpfkeeperd.yamlnodes import SIZE_MAX_BYTES, read_tree

DROP_IN_DIRECTORY = "conf.d"


def read_manifest(path: str, trust: Trust = NOBODY_ELSE) -> Manifest:
    """The manifest at a path, with the drop-ins ``conf.d/*.yaml`` beside it merged by name."""
    return with_accounts(parse_manifest(read_files(path, trust)))


def read_files(path: str, trust: Trust = NOBODY_ELSE) -> list[tuple[str, bytes]]:
    """The files of a manifest, the main one first, as absolute path and content.

    Names that begin with a dot are no drop-ins.

    Raises:
        KeeperError: ``cannot read manifest PATH: why``.
        ManifestError: somebody who is not trusted could change one of them.
    """
    try:
        main = os.path.abspath(path)
    except FileNotFoundError:
        raise KeeperError(
            f"cannot read manifest {path}: the current directory is gone: name it from / on"
        ) from None
    if not os.path.lexists(main):
        why = "No such file or directory"
        raise KeeperError(f"cannot read manifest {main}: {why}: -c names another")
    try:
        with Files(trust) as files:
            texts = [(main, files.read(main, SIZE_MAX_BYTES, "manifest "))]
            for name in _drop_ins(os.path.join(os.path.dirname(main), DROP_IN_DIRECTORY), files):
                texts.append((name, files.read(name, SIZE_MAX_BYTES, "manifest ")))
            return texts
    except UntrustedError as error:
        raise ManifestError((), str(error)) from None


def _drop_ins(directory: str, files: Files) -> list[str]:
    try:
        names = files.names_in(directory, "the manifest's drop-ins ")
    except FileNotFoundError:
        return []
    wanted = (name for name in names if name.endswith(".yaml") and not name.startswith("."))
    return [os.path.join(directory, name) for name in sorted(wanted)]


def parse_manifest(sources: Sequence[tuple[str, bytes]]) -> Manifest:
    """The manifest in (path, content) pairs, the main file first; pure.

    Raises a ManifestError with all problems of all files. Paths are absolute; a relative one
    counts from the root directory.
    """
    faults = Faults([name for name, _ in sources])
    records = [
        _record(name, data, fields.DROP_IN if index else fields.MANIFEST, faults)
        for index, (name, data) in enumerate(sources)
    ]
    main = records[0]
    metrics = main.record("metrics")
    policy = MismatchPolicy(main.record("defaults").text("on_mismatch") or MismatchPolicy.FAIL)
    manifest = Manifest(
        file=sources[0][0],
        pin_root=main.text("pin_root") or "",
        metrics_listen=host_and_port(metrics.text("listen") or "none"),
        observe_most=metrics.number("observe_max") if metrics.text("observe") == "all" else None,
        program_statistics=metrics.number("program_statistics") != 0,
        metrics_tls=_tls(metrics.fields.get("tls"), sources[0][0]),
        on_mismatch=policy,
        heal=main.number("heal") != 0,
        pin=pin_entry(main.record("defaults").record("pin")),
        maps=map_entries(
            _merged("map", [record.members("maps") for record in records], faults), policy, faults
        ),
        objects={
            name: _object(name, member, faults)
            for name, member in _merged(
                "object", [record.members("objects") for record in records], faults
            )
        },
    )
    _check_directories(manifest, faults)
    faults.raise_any()
    return manifest


def _check_directories(manifest: Manifest, faults: Faults) -> None:
    """Reports names of maps that other names would need as a directory."""
    marks = {name: entry.mark for name, entry in manifest.maps.items()}
    for found in manifest.objects.values():
        for elf_name, pin_name in found.pin_maps.items():
            marks.setdefault(pin_name, found.pin_marks[elf_name])
    for name, mark in marks.items():
        parts = name.split("/")
        for parent in ("/".join(parts[:count]) for count in range(1, len(parts))):
            if parent in marks:
                message = f"{shown(parent)} is a map, and a directory in {shown(name)}"
                faults.add(mark, message, f"the map is at {marks[parent]}, rename one of them")


def _record(name: str, data: bytes, grammar: Struct, faults: Faults) -> Record:
    """The fields of one file, as far as they can be read."""
    tree = read_tree(name, data, faults)
    if tree is None or _of_another_version(tree, faults):
        return Record({})
    value = decode(grammar, tree, Place("", tree.mark), faults)
    return value.data if value and isinstance(value.data, Record) else Record({})


def _of_another_version(tree: Node, faults: Faults) -> bool:
    """Whether a file is written for another version: then nothing else in it can be judged."""
    for key, value in tree.pairs if isinstance(tree, MappingNode) else ():
        match value:
            case ScalarNode(text=text, plain=True) if key.text == "version":
                if text.isdecimal() and text.isascii() and text != str(fields.VERSION):
                    faults.add(
                        value.mark,
                        f"version is {shown(text)}",
                        f"this program understands version {fields.VERSION} only",
                    )
                    return True
            case _:
                pass
    return False


def _merged(
    noun: str, parts: Sequence[Mapping[str, Member]], faults: Faults
) -> Iterator[tuple[str, Member]]:
    """The members of all files; a name in two of them is reported."""
    first: dict[str, Mark] = {}
    for part in parts:
        for name, member in part.items():
            if name in first:
                faults.add(
                    member.mark,
                    f"{noun} {shown(name)} is in two files",
                    f"the first is at {first[name]}, remove one of them",
                )
            else:
                first[name] = member.mark
                yield name, member


def _fields_of(value: Value) -> Record:
    return value.data if isinstance(value.data, Record) else Record({})


def _beside(file: str, path: str) -> str:
    """A path that a YAML file names: a relative one starts at the directory of that file."""
    return absolute(posixpath.join(posixpath.dirname(posixpath.join("/", file)), path))


def _tls(value: Value | None, file: str) -> TlsEntry | None:
    if value is None:
        return None
    record = _fields_of(value)
    certificate = _beside(file, record.text("certificate") or "")
    key, client_ca = record.text("key"), record.text("client_ca")
    return TlsEntry(
        certificate,
        key=_beside(file, key) if key else certificate,
        client_ca=_beside(file, client_ca) if client_ca else None,
    )


def _object(name: str, member: Member, faults: Faults) -> ObjectEntry:
    record = _fields_of(member.value)
    pins, marks = _pin_maps(name, record.fields.get("pin_maps"), faults)
    return ObjectEntry(
        name=name,
        file=_beside(member.mark.file, record.text("file") or ""),
        sha256=record.text("sha256"),
        pin_maps=pins,
        programs={
            program: _program(name, program, found, faults)
            for program, found in record.members("programs").items()
        },
        mark=member.mark,
        pin_marks=marks,
        register={
            item.data: item.mark for item in record.items("register") if isinstance(item.data, str)
        },
    )


def _pin_maps(
    name: str, value: Value | None, faults: Faults
) -> tuple[dict[str, str], dict[str, Mark]]:
    """ELF name to pin name, and to where it stands; two for one pin are reported."""
    pins: dict[str, str] = {}
    marks: dict[str, Mark] = {}
    first: dict[str, Mark] = {}
    for elf_name, pin_name, mark, pin_mark in _pin_pairs(value):
        if pin_name in first:
            faults.add(
                pin_mark,
                f"objects.{short(name)}.pin_maps has the pin {shown(pin_name)} twice",
                f"the first is at {first[pin_name]}, a pin is one map",
            )
        first.setdefault(pin_name, pin_mark)
        pins[elf_name] = pin_name
        marks[elf_name] = mark
    return pins, marks


def _pin_pairs(value: Value | None) -> Iterator[tuple[str, str, Mark, Mark]]:
    """ELF name, pin name, and where each stands, of either form of pin_maps."""
    match value.data if value else None:
        case tuple() as items:
            for item in items:
                if isinstance(item.data, str):
                    yield item.data, item.data, item.mark, item.mark
        case dict() as members:
            for elf_name, member in members.items():
                if isinstance(member.value.data, str):
                    yield elf_name, member.value.data, member.mark, member.value.mark
        case _:
            pass


def _program(object_name: str, name: str, member: Member, faults: Faults) -> ProgramEntry:
    entries: list[AttachEntry] = []
    first: dict[str, Mark] = {}
    record = _fields_of(member.value)
    for item in record.items("attach"):
        found = _fields_of(item)
        target = _target(found, item.mark, faults)  # none where a fault was found
        if target is None:
            continue
        same = _place(target)
        if same in first:
            faults.add(
                item.mark,
                f"objects.{short(object_name)}.programs.{short(name)} has {same} twice",
                f"the first is at {first[same]}, remove one of them",
            )
        first.setdefault(same, item.mark)
        entries.append(
            AttachEntry(
                target,
                before=found.text("before") or "",
                after=found.text("after") or "",
                take_over=bool(found.number("take_over")),
                mark=item.mark,
            )
        )
    place = f"objects.{short(object_name)}.programs.{short(name)}.health"
    return ProgramEntry(
        name,
        tuple(entries),
        record.text("type"),
        health_entry(record, place, faults),
        member.mark,
        attach_auto=record.fields["attach"].mark if record.text("attach") == "auto" else None,
        swap=SwapChoice(record.text("swap") or SwapChoice.DEFAULT),
    )


def _place(target: Target) -> str:
    """What one target has and another cannot have: a mode and the like is no part of it."""
    match target:
        case CgroupTarget(path=path):
            return f"cgroup {path}"
        case InterfaceTarget(name=interface, netns=netns):
            return f"interface {interface}{f' of network namespace {netns}' if netns else ''}"
        case _:
            return target_name(target).replace(":", " ", 1)


def _target(record: Record, mark: Mark, faults: Faults) -> Target | None:
    if record.faulty:
        return None
    for name, make in TARGET_MAKERS.items():
        if name in record.fields:
            made = make(record)
            if isinstance(made, str):
                faults.add(mark, made)
                return None
            return made
    return None
