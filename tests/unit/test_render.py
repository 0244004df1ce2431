"""What people are shown: tables, a status, the kinds of drift, near misses."""

from dataclasses import replace

import pytest

from bpfkeeperd.actions import Plan, Refusal
from bpfkeeperd.drift import KINDS, drift
from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.maptypes import BY_NAME
from bpfkeeperd.render import attachments_table, maps_table, status_text, table
from bpfkeeperd.state import AttachmentStatus, InnerStatus, MapIdChange, MapStatus, Status
from bpfkeeperd.suggest import did_you_mean

FLOWS = MapStatus(
    name="flows",
    id=42,
    type=BY_NAME["lru_hash"].number,
    key_size=16,
    value_size=8,
    max_entries=300,
    policy=MismatchPolicy.FAIL,
    changes={MapIdChange.LOST: 2, MapIdChange.REBOOT: 1},
)
EVENTS = MapStatus("events", 7, BY_NAME["ringbuf"].number, 0, 0, 4096, MismatchPolicy.RECREATE)
ABSENT = replace(FLOWS, name="absent", id=None, changes={}, problem="not pinned")
NEWER = replace(FLOWS, name="newer", id=8, type=99, max_entries=0, changes={})
UP = AttachmentStatus("web", "count", "cgroup_skb/egress", "cgroup:web.slice", up=True)
DOWN = AttachmentStatus(
    "web", "drop", "xdp", "interface:eth0", up=False, problem="there is no interface eth0"
)


def test_columns_are_as_wide_as_they_must_be_and_numbers_to_the_right() -> None:
    rows = [("a", "7", "50.0%", "x"), ("long name", "1234", "-", "")]
    assert table(("NAME", "ID", "FILL", "KIND"), rows).splitlines() == [
        "NAME         ID   FILL  KIND",
        "a             7  50.0%  x",
        "long name  1234      -",
    ]


def test_a_table_of_nothing() -> None:
    assert table(("NAME", "ID"), []) == "NAME  ID"


def test_a_word_among_numbers_makes_a_column_of_words() -> None:
    assert table(("A",), [("1",), ("12 of B",)]).splitlines() == ["A", "1", "12 of B"]


def test_maps() -> None:
    counts = {42: 150, 7: 100}
    assert maps_table([FLOWS, EVENTS, ABSENT, NEWER], counts).splitlines() == [
        "MAP     ID  TYPE       USED      OF   FILL  POLICY    ID CHANGES",
        "flows   42  lru_hash    150     300  50.0%  fail               3",
        "events   7  ringbuf   100 B  4096 B   2.4%  recreate           0",
        "absent   -  lru_hash      -     300      -  fail               0  not pinned",
        "newer    8  type 99       -       -      -  fail               0",
    ]


def test_a_storage_has_no_end_and_an_estimate_is_none_to_rely_on() -> None:
    storage = replace(FLOWS, name="storage", type=BY_NAME["sk_storage"].number, max_entries=0)
    bloom = replace(FLOWS, name="bloom", type=BY_NAME["bloom_filter"].number, id=43)
    lines = maps_table([storage, bloom], {42: 12, 43: 303}).splitlines()
    assert lines[1].split() == ["storage", "42", "sk_storage", "12", "-", "-", "fail", "3"]
    assert lines[2].split() == ["bloom", "43", "bloom_filter", "~303", "300", "100.0%", "fail", "3"]


def test_maps_in_maps() -> None:
    inner = InnerStatus("7", 50, BY_NAME["hash"].number, 10)
    array = InnerStatus("8", 51, BY_NAME["array"].number, 10)
    outer = replace(FLOWS, type=BY_NAME["array_of_maps"].number, inner=(inner, array))
    assert maps_table([outer, EVENTS], {42: 2, 7: 0, 50: 5}).splitlines() == [
        "MAP     ID  TYPE           USED      OF   FILL  POLICY    ID CHANGES",
        "flows   42  array_of_maps     2     300   0.7%  fail               3",
        "  [7]   50  hash              5      10  50.0%",
        "  [8]   51  array             -      10      -",
        "events   7  ringbuf         0 B  4096 B   0.0%  recreate           0",
    ]
    many = replace(outer, inner=tuple(replace(inner, key=str(slot)) for slot in range(20)))
    lines = maps_table([many], {}).splitlines()
    assert len(lines) == 2 + 16 + 1 and lines[-1] == "  ... and 4 more"


@pytest.mark.parametrize(
    ("used", "of", "fill"),
    [(0, 300, "0.0%"), (300, 300, "100.0%"), (301, 300, "100.0%"), (5, 0, "-"), (None, 300, "-")],
)
def test_fill(used: int | None, of: int, fill: str) -> None:
    counts = {} if used is None else {42: used}
    line = maps_table([replace(FLOWS, max_entries=of)], counts).splitlines()[1]
    assert line.split()[5] == fill


def test_attachments() -> None:
    assert attachments_table([UP, DOWN]).splitlines() == [
        "ATTACHMENT  HOOK               TARGET            STATE",
        "web/count   cgroup_skb/egress  cgroup:web.slice  up",
        "web/drop    xdp                interface:eth0    DOWN   there is no interface eth0",
    ]


def test_a_status() -> None:
    status = Status((EVENTS,), (UP,), {"map_missing": 0, "leftover": 2, "attachment_missing": 1})
    parts = status_text(status, {}, ["map flows: it differs", "object web: held back"]).split(
        "\n\n"
    )
    assert parts[0].startswith("MAP") and parts[1].startswith("ATTACHMENT")
    assert parts[2:] == [
        "drift from the manifest: leftover 2, attachment_missing 1",
        "map flows: it differs\nobject web: held back",
    ]


def test_a_status_of_nothing() -> None:
    assert status_text(Status(), {}, []) == "drift from the manifest: none"


def test_drift_names_every_kind() -> None:
    assert drift(Plan()) == dict.fromkeys(KINDS, 0)
    refusals = (
        Refusal("map", "flows", "it differs"),
        Refusal("object", "web", "held back"),
        Refusal("object", "db", "held back"),
        Refusal("attachment", "web/count", "there is no cgroup"),
    )
    counts = drift(Plan(refusals=refusals))
    assert {kind: count for kind, count in counts.items() if count} == {
        "map_differs": 1,
        "object_held_back": 2,
        "target_missing": 1,
    }


@pytest.mark.parametrize(
    ("word", "choices", "said"),
    [
        ("flow", ["flows", "counts"], "did you mean flows?"),
        ("Counts", ["flows", "counts"], "did you mean counts?"),
        ("xyz", ["flows", "counts"], "there is counts, flows"),
        ("xyz", [], ""),
        ("xyz", [f"m{n}" for n in range(9)], "there is m0, m1, m2, m3, m4, m5, m6, m7, …"),
        ("xyz", [f"m{n}" for n in range(8)], "there is m0, m1, m2, m3, m4, m5, m6, m7"),
    ],
)
def test_did_you_mean(word: str, choices: list[str], said: str) -> None:
    assert did_you_mean(word, choices) == said
    assert did_you_mean(word, reversed(choices)) == said
