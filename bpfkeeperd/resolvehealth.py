"""The counters that a manifest judges programs by, found in the maps that are kept. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from bpfkeeperd.contents import encode_key
from bpfkeeperd.desired import WantedMap, WantedObject
from bpfkeeperd.entries import CounterEntry, HealthEntry, Manifest
from bpfkeeperd.errors import Problem
from bpfkeeperd.health import Counter, Health, MapCounter, Runs
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.nodes import Place, flow
from bpfkeeperd.suggest import did_you_mean

_COUNTING = frozenset(
    {"hash", "array", "percpu_hash", "percpu_array", "lru_hash", "lru_percpu_hash", "lpm_trie"}
)
"""Map types whose values are the programs' own and can be read without a side effect."""


def with_health(
    manifest: Manifest,
    objects: Mapping[str, WantedObject],
    maps: Mapping[str, WantedMap],
    problems: list[Problem],
    *,
    known: bool,
) -> dict[str, WantedObject]:
    """The objects, with what their programs have to show.

    ``known``: all objects could be read, there are no other maps.
    """
    found = dict(objects)
    for name, wanted in objects.items():
        if wanted.fault:
            continue  # it is not going to be loaded
        health = {}
        for program in manifest.objects[name].programs.values():
            if program.health and program.name in wanted.programs:
                place = Place(f"objects.{name}.programs.{program.name}.health", program.health.mark)
                resolved = _health(program.health, maps, place, problems, known=known)
                if resolved:
                    health[program.name] = resolved
        if health:
            found[name] = replace(wanted, health=health)
    return found


def _health(
    entry: HealthEntry,
    maps: Mapping[str, WantedMap],
    place: Place,
    problems: list[Problem],
    *,
    known: bool,
) -> Health | None:
    moves: Counter | None = Runs() if entry.runs else None
    still: MapCounter | None = None
    if entry.moves:
        moves = _counter(entry.moves, maps, place.under("moves", entry.moves.mark), problems, known)
        if moves is None:
            return None
    if entry.still:
        still = _counter(entry.still, maps, place.under("still", entry.still.mark), problems, known)
        if still is None:
            return None
    return Health(entry.seconds, moves, still)


def _counter(
    entry: CounterEntry,
    maps: Mapping[str, WantedMap],
    place: Place,
    problems: list[Problem],
    known: bool,
) -> MapCounter | None:
    """None for what cannot be had; why is in ``problems`` where it is a mistake."""
    wanted = maps.get(entry.map)
    if wanted is None:
        if known:
            message = f"{place}: no map {entry.map} is kept here"
            remedy = did_you_mean(entry.map, maps) or "add it to the object's pin_maps"
            problems.append(Problem(entry.mark, message, remedy))
        return None
    if type_name(wanted.spec.type) not in _COUNTING:
        message = f"{place}: a {type_name(wanted.spec.type)} has no counters that can be read"
        remedy = "name a hash or an array, per CPU or not"
        problems.append(Problem(entry.mark, message, remedy))
        return None
    definition = wanted.definition
    key, found = encode_key(
        place.under("key", entry.key.mark),
        wanted.spec,
        entry.key,
        definition.key if definition else None,
    )
    problems += found
    span = _span(entry, wanted, place, problems)
    if key is None or span is None:
        return None
    offset, size = span
    what = f".{entry.member}" if entry.member else ""
    if entry.offset is not None:
        what = f", bytes {offset} to {offset + size - 1}"
    text = f"{entry.map}[{flow(entry.key)}]{what}"
    return MapCounter(entry.map, key, size, offset, text)


def _span(
    entry: CounterEntry, wanted: WantedMap, place: Place, problems: list[Problem]
) -> tuple[int, int] | None:
    """Offset and size of the counter in the value."""
    whole = wanted.spec.value_size
    if entry.member is not None:
        return _member(entry, entry.member, wanted, place, problems)
    if entry.offset is None:
        return 0, whole
    size = entry.size or 8
    if entry.offset + size > whole:
        message = f"{place} ends at byte {entry.offset + size}, a value has {whole}"
        problems.append(Problem(entry.mark, message, "lower offset or size"))
        return None
    return entry.offset, size


def _member(
    entry: CounterEntry,
    member: str,
    wanted: WantedMap,
    place: Place,
    problems: list[Problem],
) -> tuple[int, int] | None:
    """The bytes of a member, by the layout of the value."""
    layout = wanted.spec.value_layout
    if layout is None:
        message = f"{place}: nobody knows the members of map {entry.map}, which has no BTF"
        problems.append(Problem(entry.mark, message, "write offset and size instead of member"))
        return None
    spans, names = [], dict[str, None]()
    for line in layout.splitlines():
        offset, bits, _, path = line.split(":", 3)
        if path:
            names[path] = None
        if path == member or path.startswith((f"{member}.", f"{member}[")):
            spans.append((int(offset), int(offset) + int(bits)))
    if not spans:
        message = f"{place}: a value of map {entry.map} has no member {member}"
        remedy = did_you_mean(member, names) if names else "leave member out: it is one number"
        problems.append(Problem(entry.mark, message, remedy))
        return None
    start, end = min(spans)[0], max(end for _, end in spans)
    if start % 8 or end % 8:
        message = f"{place}: member {member} of map {entry.map} is a bit-field"
        problems.append(Problem(entry.mark, message, "write offset and size of the bytes it is in"))
        return None
    return start // 8, (end - start) // 8
