"""Desired and observed become a status: what metrics and people are shown. Pure."""

from collections.abc import Mapping

from bpfkeeperd.churn import MapRecord, Memory
from bpfkeeperd.desired import Attachment, Desired, WantedMap, WantedObject
from bpfkeeperd.layout import escape
from bpfkeeperd.observed import Observed, ObservedMap
from bpfkeeperd.plan import serves
from bpfkeeperd.state import AttachmentStatus, MapStatus, ReloadStatus, Status


def status(
    desired: Desired,
    observed: Observed,
    memory: Memory,
    *,
    reuses: Mapping[str, int],
    drift: Mapping[str, int],
    reloads: ReloadStatus,
) -> Status:
    maps = []
    for name, wanted in desired.maps.items():
        found = observed.maps.get(name, ObservedMap())
        maps.append(_map_status(wanted, found, memory.maps.get(name), reuses.get(name, 0)))
    attachments = [
        _attachment_status(wanted, attachment, observed)
        for wanted in desired.objects.values()
        for attachment in wanted.attachments
    ]
    return Status(tuple(maps), tuple(attachments), drift, reloads)


def _map_status(
    wanted: WantedMap, found: ObservedMap, record: MapRecord | None, reuses: int
) -> MapStatus:
    problem = found.fault
    if not found.pinned and not problem:
        problem = "its pin is gone, the map is alive" if found.lost else "not pinned"
    info = found.pinned
    return MapStatus(
        name=wanted.name,
        id=info.id if info else None,
        type=info.type if info else wanted.spec.type,
        key_size=info.key_size if info else wanted.spec.key_size,
        value_size=info.value_size if info else wanted.spec.value_size,
        max_entries=info.max_entries if info else wanted.spec.max_entries,
        policy=wanted.policy,
        reuses=reuses,
        changes=record.changes if record else {},
        problem=problem,
    )


def _attachment_status(
    wanted: WantedObject, attachment: Attachment, observed: Observed
) -> AttachmentStatus:
    """Up: a living link at the wanted hook and target runs a kept program of this name."""
    link = observed.links.get(attachment.key)
    target_id = observed.targets.get(attachment.target)
    program = escape(attachment.program)
    kept = {
        programs[program].id
        for programs in observed.programs.get(escape(wanted.name), {}).values()
        if program in programs
    }
    problem = ""
    if isinstance(target_id, str):
        problem = target_id
    elif link is None:
        problem = "not attached"
    elif not serves(link.info, attachment, target_id):
        problem = "the link was detached, or its target went away"
    elif link.info.prog_id not in kept:
        problem = f"it runs program ID {link.info.prog_id}, which is not the kept one"
    return AttachmentStatus(
        object=wanted.name,
        program=attachment.program,
        hook=attachment.hook.name,
        target=attachment.target_name,
        up=not problem,
        prog_id=link.info.prog_id if link else None,
        link_id=link.info.id if link else None,
        problem=problem or wanted.fault,
    )
