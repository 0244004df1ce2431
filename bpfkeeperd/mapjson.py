"""Maps for scripts: the rows of ``--json``."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from bpfkeeperd.fullness import Counts, fill_ratio
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.state import InnerStatus, LastChange, MapStatus


def map_rows(maps: Sequence[MapStatus], counts: Counts) -> list[dict[str, object]]:
    """All fields of each map, with the names of types and how full it is.

    ``entries``, ``fill_ratio`` and ``last_change`` are null where there is none, and
    ``counted_by`` is empty where nothing is counted.
    """
    return [
        {
            **_row(found, counts),
            "last_change": _change_row(found.last_change),
            "pin": found.pin and _pin_row(found.pin),
            "inner": [_row(inner, counts) for inner in found.inner],
        }
        for found in maps
    ]


def _row(found: MapStatus | InnerStatus, counts: Counts) -> dict[str, object]:
    entries = counts.of(found.id)
    return {
        **asdict(found),
        "type": type_name(found.type),
        "entries": entries,
        "fill_ratio": fill_ratio(found.max_entries, entries),
        "counted_by": counts.way(found.id, found.type),
        "count_age_seconds": counts.ages_seconds.get(found.id or 0),
    }


def _pin_row(pin: Rights) -> dict[str, object]:
    return {"owner": pin.uid, "group": pin.gid, "mode": f"{pin.mode:04o}"}


def _change_row(change: LastChange | None) -> dict[str, object] | None:
    if change is None:
        return None
    at = datetime.fromtimestamp(change.at, UTC).isoformat(timespec="seconds")
    return {"reason": change.reason, "old_id": change.old_id, "at": at.replace("+00:00", "Z")}
