"""The one file the keeper writes. Losing it breaks nothing: counting starts afresh, and pins whose
maker is unknown are never removed."""

import fcntl
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from bpfkeeperd.churn import MapRecord, Memory, Withheld
from bpfkeeperd.errors import BusyError, KeeperError
from bpfkeeperd.layout import escape
from bpfkeeperd.state import LastChange, MapIdChange

FORMAT = 1


def state_path(directory: str, pin_root: str) -> str:
    """Where the state of a pin root is kept."""
    return f"{directory}/{escape(pin_root.strip('/'))}.json"


def read_state(path: str) -> tuple[Memory, str]:
    """What is remembered, and a note when it could not be read (empty: all is well)."""
    try:
        with open(path, encoding="utf-8") as file:
            return _decode(json.load(file)), ""
    except FileNotFoundError:
        return Memory(), ""
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        return Memory(), (
            f"cannot read the state file {path} ({error}): ID changes are counted from now on, and"
            " pins made before are taken for somebody else's"
        )


def lock_state(path: str) -> int | None:
    """Keeps others from writing the state file, as long as the descriptor is open.

    The lock of the pin root is not enough: two keepers can have two bpffs at one path, one after
    the other, or in mount namespaces of their own. None where no file can be made: then there will
    be no state file either.

    Raises:
        BusyError: somebody else has it.
    """
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        fd = _private(f"{path}.lock", os.O_RDWR | os.O_CREAT)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise BusyError(
            f"another keeper writes the state file {path}: stop it first, or give this one another"
            " directory by --state-dir"
        ) from None
    return fd


def write_state(path: str, memory: Memory) -> None:
    """Writes a new file, has it on disk, and puts it in the old one's place."""
    text = json.dumps(_encode(memory), indent=1)
    temporary = f"{path}.new"
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", opener=_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise KeeperError(f"cannot write the state file {path}: {error.strerror}") from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _encode(memory: Memory) -> Mapping[str, object]:
    return {
        "format": FORMAT,
        "boot_id": memory.boot_id,
        "maps": {name: _encode_record(record) for name, record in memory.maps.items()},
        "adopted": dict(memory.adopted),
        "conflicts": dict(memory.conflicts),
        "withheld": {
            name: {"digest": version.digest, "reason": version.reason}
            for name, version in memory.withheld.items()
        },
    }


def _encode_record(record: MapRecord) -> Mapping[str, object]:
    last = record.last_change
    encoded = {"id": record.id, "made": record.made, "changes": dict(record.changes)}
    optional = {
        "since": record.since,
        "past_id": record.past_id,
        "owner": record.owner,
        "last_change": last and {"reason": last.reason, "old_id": last.old_id, "at": last.at},
    }
    return encoded | {name: value for name, value in optional.items() if value}


def _decode(data: Mapping[str, object]) -> Memory:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']} is not {FORMAT}")
    maps = {}
    records = data["maps"]
    if not isinstance(records, dict):
        raise ValueError("maps is no object")
    for name, record in records.items():
        maps[str(name)] = _decode_record(record)
    adopted = data.get("adopted", {})  # not in files of former versions
    if not isinstance(adopted, dict):
        raise ValueError("adopted is no object")
    links = {str(key): int(link_id) for key, link_id in adopted.items()}
    versions = data.get("withheld", {})
    if not isinstance(versions, dict):
        raise ValueError("withheld is no object")
    withheld = {
        str(name): Withheld(str(version["digest"]), str(version["reason"]))
        for name, version in versions.items()
    }
    conflicts = data.get("conflicts", {})
    if not isinstance(conflicts, dict):
        raise ValueError("conflicts is no object")
    stored = {str(name): int(map_id) for name, map_id in conflicts.items()}
    return Memory(str(data["boot_id"]), maps, withheld, links, stored)


def _decode_record(record: Mapping[str, Any]) -> MapRecord:
    """What former versions did not write is not known."""
    changes = {MapIdChange(reason): int(count) for reason, count in record["changes"].items()}
    if any(count < 0 for count in changes.values()):
        raise ValueError("a count is negative")
    last = record.get("last_change")
    return MapRecord(
        int(record["id"]),
        bool(record["made"]),
        changes,
        since=_time(record.get("since", 0.0)),
        last_change=LastChange(MapIdChange(last["reason"]), int(last["old_id"]), _time(last["at"]))
        if last is not None
        else None,
        past_id=int(record.get("past_id", 0)),
        owner=int(record.get("owner", 0)),
    )


def _time(value: Any) -> float:
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds} is no time")
    return seconds
