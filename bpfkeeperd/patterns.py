"""Targets that are patterns, and the attachments that they stand for. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from bpfkeeperd.desired import Attachment, Desired, WantedObject, target_name
from bpfkeeperd.layout import escape
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, Target, XdpMode

Matches = Mapping[Target, tuple[Target, ...]]
"""A pattern to what matches it now, each as a target of its own."""


def _is_pattern(target: Target) -> bool:
    match target:
        case CgroupTarget() | InterfaceTarget():
            return target.is_pattern
        case _:
            return False


def pattern_targets(desired: Desired) -> dict[Target, None]:
    """All patterns of the manifest, those of objects that cannot be read too, each once."""
    attachments = (
        attachment.target
        for wanted in desired.objects.values()
        for attachment in wanted.attachments
    )
    unread = (
        attach.target
        for name in desired.faults
        for program in desired.manifest.objects[name].programs.values()
        for attach in program.attach
    )
    return dict.fromkeys(target for target in (*attachments, *unread) if _is_pattern(target))


def expand(desired: Desired, matches: Matches, cgroup_mount: str | None) -> Desired:
    """Puts an attachment for each match in the place of each pattern.

    A program is attached once where several patterns match; a target that is named as such wins.
    A pattern that is its own match stays: where it would match cannot be seen.
    """
    if not matches:
        return desired
    objects = {
        name: replace(wanted, attachments=tuple(_attachments(wanted, matches, cgroup_mount)))
        for name, wanted in desired.objects.items()
    }
    return replace(desired, objects=objects, matches=matches)


def _attachments(
    wanted: WantedObject, matches: Matches, cgroup_mount: str | None
) -> Iterator[Attachment]:
    named = [found for found in wanted.attachments if found.target not in matches]
    taken = {(found.program, _place(found.target, cgroup_mount)) for found in named}
    yield from named
    for pattern in wanted.attachments:
        for target in matches.get(pattern.target, ()):
            place = pattern.program, _place(target, cgroup_mount)
            if place not in taken:
                taken.add(place)
                yield _at(pattern, target)


def _at(pattern: Attachment, target: Target) -> Attachment:
    """What a pattern says of one of its matches."""
    name = target_name(target)
    key = pattern.key[0], pattern.key[1], escape(name)
    return replace(pattern, target=target, target_name=name, key=key)


def _place(target: Target, cgroup_mount: str | None) -> Target:
    """A target in one spelling. The mode is no part of it: an interface has one XDP program."""
    match target:
        case InterfaceTarget():
            return replace(target, mode=XdpMode.AUTO)
        case CgroupTarget(path) if cgroup_mount and path.startswith(f"{cgroup_mount}/"):
            return replace(target, path=path.removeprefix(f"{cgroup_mount}/"))
        case _:
            return target
