"""Maps for scripts: stable keys, and null where there is nothing."""

import json
from dataclasses import replace

from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.fullness import Counts
from bpfkeeperd.mapjson import map_rows
from bpfkeeperd.maptypes import BY_NAME
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.state import InnerStatus, LastChange, MapIdChange, MapStatus

HASH = BY_NAME["hash"].number
FLOWS = MapStatus(
    name="flows",
    id=42,
    type=HASH,
    key_size=16,
    value_size=8,
    max_entries=200,
    policy=MismatchPolicy.FAIL,
    changes={MapIdChange.LOST: 2},
    path="/sys/fs/bpf/flows",
    made=True,
    last_change=LastChange(MapIdChange.LOST, 40, 1_700_000_000.9),
    other_pins=("/sys/fs/bpf/tc/globals/flows",),
    pin=Rights(0, 998, 0o640, "root", "monitor"),
    inner=(InnerStatus("3", 43, HASH, 10),),
)


def test_a_map() -> None:
    counts = Counts({42: 50, 43: 10}, {HASH: "kfunc"}, {42: "batch"}, {42: 12.5})
    (row,) = json.loads(json.dumps(map_rows([FLOWS], counts)))
    assert row == {
        "name": "flows",
        "id": 42,
        "type": "hash",
        "key_size": 16,
        "value_size": 8,
        "max_entries": 200,
        "policy": "fail",
        "reuses": 0,
        "changes": {"lost": 2},
        "problem": "",
        "inner": [
            {
                "key": "3",
                "id": 43,
                "type": "hash",
                "max_entries": 10,
                "entries": 10,
                "fill_ratio": 1.0,
                "counted_by": "kfunc",
                "count_age_seconds": None,
            }
        ],
        "flags": 0,
        "path": "/sys/fs/bpf/flows",
        "made": True,
        "last_change": {"reason": "lost", "old_id": 40, "at": "2023-11-14T22:13:20Z"},
        "stored_id": None,
        "other_pins": ["/sys/fs/bpf/tc/globals/flows"],
        "pin": {"owner": 0, "group": 998, "mode": "0640"},
        "count_nonzero": False,
        "entries": 50,
        "fill_ratio": 0.25,
        "counted_by": "batch",
        "count_age_seconds": 12.5,
    }


def test_a_map_of_which_nothing_is_known() -> None:
    absent = replace(FLOWS, id=None, last_change=None, max_entries=0, inner=())
    (row,) = map_rows([absent], Counts({42: 50}, {HASH: "kfunc"}))
    assert (row["entries"], row["fill_ratio"], row["counted_by"]) == (None, None, "")
    assert (row["id"], row["last_change"], row["count_age_seconds"]) == (None, None, None)


def test_a_share_is_never_above_one_and_a_storage_has_none() -> None:
    (row,) = map_rows([FLOWS], Counts({42: 201}))
    assert row["fill_ratio"] == 1.0
    (row,) = map_rows([replace(FLOWS, max_entries=0)], Counts({42: 201}))
    assert (row["entries"], row["fill_ratio"]) == (201, None)
