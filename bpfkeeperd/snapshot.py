"""Desired and observed become a status: what metrics and people are shown. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bpfkeeperd.churn import MapRecord, Memory
from bpfkeeperd.conflicts import conflict_text
from bpfkeeperd.desired import (
    REGISTERED,
    THE_KERNEL,
    Attachment,
    Desired,
    WantedMap,
    WantedObject,
    target_name,
)
from bpfkeeperd.drift import count
from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.foreign import beside, beside_text
from bpfkeeperd.hooks import HookKind
from bpfkeeperd.layout import Layout, escape, unescape
from bpfkeeperd.observed import Foreign, Observed, ObservedMap
from bpfkeeperd.ordering import ordered_places, status_of_order
from bpfkeeperd.plan import serves
from bpfkeeperd.state import (
    AttachmentStatus,
    Difference,
    HealStatus,
    MapStatus,
    ProgramInfo,
    ProgramStatus,
    ReloadStatus,
    Status,
)

UNKNOWN = MapRecord(0)
"""Of a name that nothing is remembered of."""


def status(
    desired: Desired,
    observed: Observed,
    memory: Memory,
    *,
    reuses: Mapping[str, int],
    drifting: Sequence[Difference],
    reloads: ReloadStatus,
    heals: HealStatus,
) -> Status:
    layout = Layout(desired.manifest.pin_root)
    maps = []
    for name, wanted in desired.maps.items():
        found = observed.maps.get(name, ObservedMap())
        maps.append(_map_status(wanted, found, layout, memory, reuses.get(name, 0)))
    places = ordered_places(desired.attachments)
    attachments = []
    for wanted_object in desired.objects.values():
        kept = _kept_programs(observed.programs.get(escape(wanted_object.name), {}))
        for attachment in wanted_object.attachments:
            order = status_of_order(attachment, places, observed)
            attachments.append(
                _attachment_status(wanted_object, attachment, observed, memory, order, kept, layout)
            )
    for name in desired.unread_maps():
        found = observed.maps.get(name, ObservedMap())
        if found.pinned:
            policy = desired.manifest.policy(name)
            maps.append(_pinned_status(name, found, policy, layout, memory, reuses.get(name, 0)))
    attachments += _unread_attachments(desired, observed)
    return Status(
        tuple(maps),
        tuple(attachments),
        count(drifting),
        reloads,
        tuple(drifting),
        heals,
        tuple(_programs(desired, observed, layout)),
    )


Digests = Mapping[str, Mapping[str, ProgramInfo]]
"""Of one object: see `Observed.programs`."""
KeptPrograms = Mapping[str, Mapping[int, tuple[str, str]]]
"""Of one object: escaped program name and ID to digest and tag."""


def _kept_programs(digests: Digests) -> KeptPrograms:
    kept: dict[str, dict[int, tuple[str, str]]] = {}
    for digest, programs in digests.items():
        for program, info in programs.items():
            kept.setdefault(program, {})[info.id] = (digest, info.tag)
    return kept


def _programs(desired: Desired, observed: Observed, layout: Layout) -> Iterator[ProgramStatus]:
    """The programs of each object: of the version that is wanted, or else of the one that runs."""
    for name in (*desired.objects, *desired.faults):
        escaped = escape(name)
        digests = observed.programs.get(escaped)
        if not digests:
            continue
        wanted = desired.objects.get(name)
        digest = wanted.digest if wanted else ""
        if digest not in digests:
            digest = _running_digest(escaped, digests, observed)
        directory = f"{layout.objects}/{escaped}/{digest}"
        for program, info in digests[digest].items():
            stub = observed.stubs.get((escaped, program))
            runs = stub is not None and stub.serves == info.id
            yield ProgramStatus(
                name,
                unescape(program),
                info.type,
                info.id,
                info.tag,
                digest,
                f"{directory}/{program}",
                f"{layout.stub_at((escaped, program))}/stub" if runs else "",
            )


def _running_digest(escaped_object: str, digests: Digests, observed: Observed) -> str:
    """The version of an object that most of its links run; the first where none is attached."""
    running = Counter(
        link.info.prog_id for key, link in observed.links.items() if key[0] == escaped_object
    )
    return max(digests, key=lambda each: sum(running[info.id] for info in digests[each].values()))


def _unread_attachments(desired: Desired, observed: Observed) -> Iterator[AttachmentStatus]:
    """Of objects that cannot be read: which hook a program is for is then not known, nor where it
    is attached if the manifest leaves that to the object. There the pins say it."""
    by_pin = desired.unread_by_pin()
    pinned = [key for key in sorted(observed.links) if key[:2] in by_pin]
    found = {key: observed.links[key].info.target_id for key in pinned}
    names = {key: unescape(key[2]).replace(REGISTERED, THE_KERNEL) for key in pinned}
    for _, _, target, key in desired.unread_attachments():
        if key[:2] in {pin[:2] for pin in pinned}:
            continue
        names[key], link = target_name(target), observed.links.get(key)
        if link is not None and link.info.target_id == observed.targets.get(target):
            found[key] = link.info.target_id
    for key, target_text in names.items():
        name, link, alive = unescape(key[0]), observed.links.get(key), bool(found.get(key))
        yield AttachmentStatus(
            object=name,
            program=unescape(key[1]),
            hook="",
            target=target_text,
            up=alive,
            prog_id=(link.info.prog_id or None) if link else None,
            link_id=(link.info.id or None) if link else None,
            problem=desired.faults[name] if alive else "not attached",
        )


def _map_status(
    wanted: WantedMap, found: ObservedMap, layout: Layout, memory: Memory, reuses: int
) -> MapStatus:
    if found.pinned:
        pinned = _pinned_status(wanted.name, found, wanted.policy, layout, memory, reuses)
        astray = _astray_text(wanted, found)
        if astray or wanted.count_nonzero:
            return replace(pinned, problem=astray, count_nonzero=wanted.count_nonzero)
        return pinned
    record = memory.maps.get(wanted.name, UNKNOWN)
    return MapStatus(
        name=wanted.name,
        id=None,
        type=wanted.spec.type,
        key_size=wanted.spec.key_size,
        value_size=wanted.spec.value_size,
        max_entries=wanted.spec.max_entries,
        policy=wanted.policy,
        reuses=reuses,
        changes=record.changes,
        problem=found.fault or ("its pin is gone, it is alive" if found.lost else "not pinned"),
        flags=wanted.spec.flags,
        last_change=record.last_change,
    )


def _astray_text(wanted: WantedMap, found: ObservedMap) -> str:
    """Which entries are not as the manifest has them, where it wants them so."""
    if not wanted.enforce or not found.astray:
        return ""
    texts = [wanted.contents[place].text for place in found.astray[:3]]
    more = ", ..." if len(found.astray) > len(texts) else ""
    return f"not as in the manifest: {', '.join(texts)}{more}"


def _pinned_status(
    name: str,
    found: ObservedMap,
    policy: MismatchPolicy,
    layout: Layout,
    memory: Memory,
    reuses: int,
) -> MapStatus:
    pin_name, info = found.source or name, found.pinned
    assert info is not None
    record = memory.maps.get(pin_name, UNKNOWN)
    path = layout.map(pin_name)
    return MapStatus(
        name=name,
        id=info.id,
        type=info.type,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        policy=policy,
        reuses=reuses,
        changes=record.changes,
        flags=info.flags,
        problem=conflict_text(info.id, found.stored_id, path) if found.stored_id else "",
        path=path,
        made=record.made,
        last_change=record.last_change,
        stored_id=found.stored_id or None,
        pin=found.rights,
    )


def _attachment_status(
    wanted: WantedObject,
    attachment: Attachment,
    observed: Observed,
    memory: Memory,
    order: str,
    kept: KeptPrograms,
    layout: Layout,
) -> AttachmentStatus:
    """Up: a living link at the wanted hook and target runs a kept program of this name. ``order``
    is what is wrong with its place among others."""
    link = observed.links.get(attachment.key)
    target_id = observed.targets.get(attachment.target)
    path = ""
    if link:
        place = layout.link_at if link.info.id else layout.attached_at
        path = place(attachment.key)
    of_name = kept.get(attachment.key[1], {})
    digest, tag = of_name.get(link.info.prog_id, ("", "")) if link else ("", "")
    adopted = memory.adopted.get("/".join(attachment.key))
    others: Sequence[Foreign] = beside(observed, attachment)
    problem = ""
    if isinstance(target_id, str):
        problem = target_id
    elif link is None:
        problem = "no link is pinned for it"
        if others := observed.foreign.get(attachment.key, ()):
            problem = f"not attached: {' and '.join(map(str, others))} is there"
    elif not serves(link.info, attachment, target_id):
        problem = "the link was detached, or its target went away"
    elif not digest and attachment.hook.kind is not HookKind.STRUCT_OPS:
        problem = f"it runs program ID {link.info.prog_id}, which is not the kept one"
    return AttachmentStatus(
        object=wanted.name,
        program=attachment.program,
        hook=attachment.hook.name,
        target=attachment.target_name,
        up=not problem,
        prog_id=(link.info.prog_id or None) if link else None,
        link_id=(link.info.id or None) if link else None,
        problem=problem or wanted.fault or "; ".join(map(beside_text, others)) or order,
        adopted=link is not None and link.info.id == adopted,
        digest=digest,
        tag=tag,
        path=path,
    )
