"""The one file the keeper writes. Losing it breaks nothing: counting starts afresh, and pins whose
maker is unknown are never removed."""

import json
import os
from collections.abc import Mapping

from bpfkeeperd.churn import MapRecord, Memory, Withheld
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.layout import escape
from bpfkeeperd.state import MapIdChange

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
        "maps": {
            name: {"id": record.id, "made": record.made, "changes": dict(record.changes)}
            for name, record in memory.maps.items()
        },
        "withheld": {
            name: {"digest": version.digest, "reason": version.reason}
            for name, version in memory.withheld.items()
        },
    }


def _decode(data: Mapping[str, object]) -> Memory:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']} is not {FORMAT}")
    maps = {}
    records = data["maps"]
    if not isinstance(records, dict):
        raise ValueError("maps is no object")
    for name, record in records.items():
        changes = {MapIdChange(reason): int(count) for reason, count in record["changes"].items()}
        maps[str(name)] = MapRecord(int(record["id"]), bool(record["made"]), changes)
    versions = data.get("withheld", {})
    if not isinstance(versions, dict):
        raise ValueError("withheld is no object")
    withheld = {
        str(name): Withheld(str(version["digest"]), str(version["reason"]))
        for name, version in versions.items()
    }
    return Memory(str(data["boot_id"]), maps, withheld)
