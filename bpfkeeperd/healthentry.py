"""``health`` of a program in the manifest: what stands there, and what does not fit. Pure."""

from bpfkeeperd.decode import Record
from bpfkeeperd.entries import CounterEntry, HealthEntry
from bpfkeeperd.errors import Mark
from bpfkeeperd.nodes import Faults


def health_entry(program: Record, place: str, faults: Faults) -> HealthEntry | None:
    """How a program is to be judged; None where the manifest does not say, or not right."""
    found = program.fields.get("health")
    if found is None or not isinstance(found.data, Record):
        return None
    record = found.data
    if not record.fields and not record.faulty:
        return None  # nothing is written
    moves, still = record.fields.get("moves"), record.fields.get("still")
    if moves is None and still is None and not record.faulty:
        remedy = "write moves: runs, or moves: {map: counts, key: 0}"
        faults.add(found.mark, f"{place} has neither moves nor still", remedy)
        return None
    seconds = record.number("seconds")
    if seconds is None or record.faulty:
        return None
    return HealthEntry(
        seconds,
        _counter(record.record("moves"), f"{place}.moves", faults, moves.mark if moves else None),
        record.text("moves") is not None,
        _counter(record.record("still"), f"{place}.still", faults, still.mark if still else None),
        found.mark,
    )


def _counter(record: Record, place: str, faults: Faults, mark: Mark | None) -> CounterEntry | None:
    name, key = record.text("map"), record.node("key")
    if mark is None or name is None or key is None or record.faulty:
        return None
    member, offset = record.text("member"), record.number("offset")
    if member is not None and offset is not None:
        where = record.fields["offset"].mark
        faults.add(where, f"{place} has both member and offset", "keep one of them")
        return None
    return CounterEntry(name, key, member, offset, record.number("size"), mark)
