"""What people are shown: maps, attachments, a status, the kinds of drift, near misses."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkeeperd.actions import Plan, Refusal
from bpfkeeperd.celltext import width_of
from bpfkeeperd.columns import Screen, table
from bpfkeeperd.drift import KINDS, drift
from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.fullness import Counts
from bpfkeeperd.maptypes import BY_NAME
from bpfkeeperd.render import attachments_table, maps_table, status_text
from bpfkeeperd.state import (
    AttachmentStatus,
    Difference,
    InnerStatus,
    LastChange,
    MapIdChange,
    MapStatus,
    Status,
)
from bpfkeeperd.suggest import did_you_mean

NOW = 1_700_000_000.0
FLOWS = MapStatus(
    name="flows",
    id=42,
    type=BY_NAME["hash"].number,
    key_size=16,
    value_size=8,
    max_entries=300_000,
    policy=MismatchPolicy.FAIL,
    changes={MapIdChange.LOST: 2, MapIdChange.RECREATED: 1},
    made=True,
    last_change=LastChange(MapIdChange.RECREATED, 40, NOW - 7300),
    other_pins=("/sys/fs/bpf/elsewhere",),
)
EVENTS = MapStatus("events", 7, BY_NAME["ringbuf"].number, 0, 0, 4096, MismatchPolicy.RECREATE)
ABSENT = replace(
    FLOWS, name="absent", id=None, changes={}, problem="not pinned", last_change=None, other_pins=()
)
NEWER = replace(EVENTS, name="newer", id=8, type=99, max_entries=0)
COUNTS = Counts({42: 150_000, 7: 100})
UP = AttachmentStatus("web", "count", "cgroup_skb/egress", "cgroup:web.slice", up=True)
DOWN = AttachmentStatus(
    "web", "drop", "xdp", "interface:eth0", up=False, problem="there is no interface eth0"
)
FILE = Screen()


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


def maps(*shown: MapStatus, width: int | None = None, counts: Counts = COUNTS) -> list[str]:
    return maps_table(shown, counts, Screen(width), now=NOW).splitlines()


def test_maps_in_a_file_are_shown_in_full() -> None:
    assert maps(FLOWS, EVENTS, ABSENT, NEWER) == [
        "MAP     ID  TYPE        USED       OF  FILL             CHANGES  LAST CHANGE     "
        "  PINNED BY  POLICY     KEY  VALUE",
        "flows   42  hash     150,000  300,000  █████░░░░░  50%        3  2h ago recreated"
        "  keeper +1  fail      16 B    8 B",
        "events   7  ringbuf    100 B  4,096 B  ▏░░░░░░░░░   2%        0  never           "
        "  others     recreate   0 B    0 B",
        "absent   -  hash           -  300,000                -        0  never           "
        "  -          fail      16 B    8 B",
        "  ! not pinned",
        "newer    8  type 99        -        -                -        0  never           "
        "  others     recreate   0 B    0 B",
    ]


def test_maps_at_80_columns() -> None:
    assert maps(FLOWS, EVENTS, ABSENT, NEWER, width=80) == [
        "MAP     ID  TYPE      USED     OF  FILL         LAST CHANGE      PINNED BY",
        "flows   42  hash      150K   300K  ███░░░  50%  2h recreated x3  keeper +1",
        "events   7  ringbuf  100 B  4 KiB  ▏░░░░░   2%  never            others",
        "absent   -  hash         -   300K            -  never            -",
        "  ! not pinned",
        "newer    8  type 99      -      -            -  never            others",
    ]


def test_a_long_name_at_80_columns() -> None:
    long = replace(FLOWS, name="connections_by_source_and_destination")
    assert maps(FLOWS, long, width=80) == [
        "MAP                   ID  TYPE  USED    OF  FILL       LAST CHANGE      PINNED",
        "flows                 42  hash  150K  300K  ██░░  50%  2h recreated x3  keeper+1",
        "connection…stination  42  hash  150K  300K  ██░░  50%  2h recreated x3  keeper+1",
    ]
    wide = replace(FLOWS, name="流量统计表" * 5)
    assert maps(FLOWS, wide, width=80) == [
        "MAP                   ID  TYPE  USED    OF  FILL       LAST CHANGE      PINNED",
        "flows                 42  hash  150K  300K  ██░░  50%  2h recreated x3  keeper+1",
        "流量统计表…量统计表   42  hash  150K  300K  ██░░  50%  2h recreated x3  keeper+1",
    ]


def test_maps_at_40_columns() -> None:
    problem = replace(ABSENT, problem="its pin is gone, it is alive, and something else is wrong")
    long = replace(FLOWS, name="connections_by_source_and_destination")
    assert maps(FLOWS, problem, long, width=40) == [
        "MAP           ID  TYPE  USED    OF  FILL",
        "flows         42  hash  150K  300K   50%",
        "absent         -  hash     -  300K     -",
        "  ! its pin is gone, it is alive, and",
        "    something else is wrong",
        "connec…ation  42  hash  150K  300K   50%",
    ]


def test_maps_without_unicode() -> None:
    lines = maps_table([replace(FLOWS, name="n\xe9e")], COUNTS, Screen(72, unicode=False), now=NOW)
    assert lines.splitlines()[1] == (
        r"n\xe9e  42  hash  150K  300K  ###...  50%  2h recreated x3  keeper +1"
    )


def test_a_change_of_which_only_the_number_is_known() -> None:
    old = replace(FLOWS, last_change=None)
    assert "unknown x3" in maps(old, width=60)[1]
    assert " 3  unknown " in maps(old)[1]


def test_a_storage_has_no_end_and_an_estimate_is_none_to_rely_on() -> None:
    storage = replace(FLOWS, name="storage", type=BY_NAME["sk_storage"].number, max_entries=0)
    bloom = replace(FLOWS, name="bloom", type=BY_NAME["bloom_filter"].number, id=43, max_entries=9)
    lines = maps(storage, bloom, counts=Counts({42: 12, 43: 13}))
    assert lines[1].split()[:6] == ["storage", "42", "sk_storage", "12", "-", "-"]
    assert lines[2].split()[:7] == ["bloom", "43", "bloom_filter", "~13", "9", "█" * 10, "100%"]


def test_the_bar_is_worth_more_than_the_age_of_a_count() -> None:
    counts = Counts({8_742_042: 150_000, 7: 1}, ages_seconds={8_742_042: 12.3})
    busy = replace(FLOWS, name="connections_of_the_edge", id=8_742_042)
    head, line, _ = maps(busy, EVENTS, width=80, counts=counts)
    assert "AGE" not in head and "PINNED" in head and "LAST CHANGE" in head
    assert "██░░  50%  2h recreated x3  keeper+1" in line and width_of(line) <= 80


def test_the_age_of_a_count() -> None:
    lines = maps(FLOWS, EVENTS, width=80, counts=Counts({42: 150, 7: 1}, ages_seconds={42: 12.3}))
    assert [line[29:64].rstrip() for line in lines] == [
        " OF  FILL         AGE  LAST CHANGE",
        "00K  ▏░░░░░  <1%  12s  2h recreated",
        "KiB  ▏░░░░░  <1%       never",
    ]


def test_maps_in_maps() -> None:
    inner = InnerStatus("7", 50, BY_NAME["hash"].number, 10)
    array = InnerStatus("8", 51, BY_NAME["array"].number, 10)
    outer = replace(FLOWS, type=BY_NAME["array_of_maps"].number, inner=(inner, array))
    lines = maps(outer, EVENTS, width=80, counts=Counts({42: 2, 7: 0, 50: 5}))
    assert lines[1:] == [
        "flows   42  array_of_maps     2   300K  ▏░░░░░  <1%  2h recreated x3  keeper +1",
        "  [7]   50  hash              5     10  ███░░░  50%",
        "  [8]   51  array             -     10            -",
        "events   7  ringbuf         0 B  4 KiB  ░░░░░░   0%  never            others",
    ]
    many = replace(outer, inner=tuple(replace(inner, key=str(slot)) for slot in range(20)))
    assert len(lines := maps(many)) == 2 + 16 + 1
    assert lines[-1] == "  and 4 more"


@pytest.mark.parametrize(
    ("map_type", "used", "colour"),
    [
        ("hash", 79, 32),
        ("hash", 80, 33),
        ("hash", 95, 31),
        ("lru_hash", 99, None),
        ("array", 99, None),
        ("ringbuf", 99, 31),
    ],
)
def test_colour_of_a_bar(map_type: str, used: int, colour: int | None) -> None:
    status = replace(FLOWS, type=BY_NAME[map_type].number, max_entries=100)
    line = maps_table([status], Counts({42: used}), Screen(100, colour=True), now=NOW).split("\n")[
        1
    ]
    found = re.search(rf"(\x1b\[\d+m)?█\S+ +{used}%(\x1b\[m)?", line)
    assert found and found.groups() == ((f"\x1b[{colour}m", "\x1b[m") if colour else (None, None))


def test_colour_changes_no_text() -> None:
    for width in (40, 80, 120):
        shown = [FLOWS, EVENTS, ABSENT, NEWER]
        painted = maps_table(shown, COUNTS, Screen(width, colour=True), now=NOW)
        plain = maps_table(shown, COUNTS, Screen(width), now=NOW)
        assert painted != plain and re.sub(r"\x1b\[[\d;]*m", "", painted) == plain


NAMES = st.text(st.characters(), min_size=1, max_size=30)
STATUSES = st.builds(
    replace,
    st.just(FLOWS),
    name=NAMES,
    id=st.none() | st.integers(1, 2**31),
    type=st.sampled_from([*(known.number for known in BY_NAME.values()), 99]),
    max_entries=st.integers(0, 2**32 - 1),
    problem=st.just("") | NAMES,
    other_pins=st.lists(NAMES, max_size=12).map(tuple),
    inner=st.lists(st.builds(InnerStatus, NAMES, st.just(50), st.just(1), st.just(9)), max_size=2)
    .map(tuple),
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(STATUSES, max_size=4), st.integers(1, 200), st.booleans())
def test_no_line_is_wider_than_the_screen_and_nothing_in_it_can_be_obeyed(
    shown: list[MapStatus], width: int, unicode: bool
) -> None:
    counts = Counts({found.id: found.max_entries // 3 for found in shown if found.id})
    lines = maps_table(shown, counts, Screen(width, unicode=unicode), now=NOW).split("\n")
    assert all(line.isprintable() for line in lines)
    assert unicode or all(line.isascii() for line in lines)
    if width >= 6:  # a note is not made narrower
        assert all(width_of(line) <= width for line in lines), (width, lines)


def test_attachments() -> None:
    assert attachments_table([UP, DOWN], FILE).splitlines() == [
        "STATE  ATTACHMENT  HOOK               TARGET",
        "up     web/count   cgroup_skb/egress  cgroup:web.slice",
        "DOWN   web/drop    xdp                interface:eth0",
        "  ! there is no interface eth0",
    ]


def test_attachments_at_60_columns() -> None:
    known = replace(UP, adopted=True, digest="0123456789abcdef01234567-1", tag="f00dfeed")
    long = replace(DOWN, target="cgroup:/sys/fs/cgroup/system.slice/web.service")
    assert attachments_table([known, long], Screen(60)).splitlines() == [
        "STATE        ATTACHMENT  HOOK               TARGET",
        "up, adopted  web/count   cgroup_skb/egress  cgroup:web.slice",
        "DOWN         web/drop    xdp                cgroup:/…service",
        "  ! there is no interface eth0",
    ]
    line = attachments_table([known], Screen(80)).splitlines()[1]
    assert line.endswith("cgroup_skb/egress  cgroup:web.slice  0123456789ab")
    line = attachments_table([known], FILE).splitlines()[1]
    assert line.endswith("cgroup:web.slice  0123456789abcdef01234567-1  f00dfeed")


def status(now: Status, *refused: str, screen: Screen = FILE) -> list[str]:
    text = status_text(now, Counts(), refused, "a daemon keeps /sys/fs/bpf", screen, now=NOW)
    return text.split("\n\n")


def test_a_status_that_is_fine() -> None:
    head, *parts = status(Status((EVENTS,), (UP,), {"map_missing": 0}))
    assert head == "a daemon keeps /sys/fs/bpf: 1 map, 1 attachment\nall fine"
    assert [part.split()[0] for part in parts] == ["STATE", "MAP"]


def test_a_status_of_nothing() -> None:
    assert status(Status()) == ["a daemon keeps /sys/fs/bpf: 0 maps, 0 attachments\nall fine"]


def test_a_status_with_problems() -> None:
    refused = ("map flows: it differs", "object web: held back")
    differences = (
        Difference("leftover", "remove what is left of web"),
        Difference("map_differs", refused[0]),
    )
    drifting = {"map_missing": 0, "leftover": 1, "map_differs": 1}
    now = Status((ABSENT,), (DOWN, UP), drifting, differences=differences)
    head, attachments, maps_part, drift_part, refused_part = status(now, *refused)
    assert head.splitlines()[1] == "1 attachment DOWN, 1 map not pinned, 2 refused"
    assert "! there is no interface eth0" in attachments and "! not pinned" in maps_part
    assert drift_part.splitlines() == [
        "drift from the manifest: leftover 1, map_differs 1",
        "  leftover  remove what is left of web",
    ]
    assert refused_part.splitlines() == [
        "not done, as it is in the manifest:",
        "  ! map flows: it differs",
        "  ! object web: held back",
    ]


def test_a_status_that_only_drifts() -> None:
    differences = tuple(Difference("leftover", f"remove {number}") for number in range(60))
    head, part = status(Status(drift={"leftover": 60}, differences=differences))
    assert head.endswith("\n60 differences from the manifest")
    assert part.splitlines()[-2:] == ["  leftover  remove 49", "  and 10 more"]


def test_drift_on_a_narrow_screen() -> None:
    text = "swap the program of sockops/add_to_sockhash at sockops of cgroup:demo"
    now = Status(drift={"attachment_other_program": 1}, differences=(Difference("other", text),))
    *_, part = status(now, screen=Screen(40))
    assert part.splitlines() == [
        "drift from the manifest:",
        "attachment_other_program 1",
        "  other",
        "    swap the program of",
        "    sockops/add_to_sockhash at sockops",
        "    of cgroup:demo",
    ]
    *_, part = status(now, screen=Screen(60))
    assert part.splitlines()[1:] == [
        "  other  swap the program of sockops/add_to_sockhash at",
        "         sockops of cgroup:demo",
    ]


def test_why_nothing_is_counted() -> None:
    counts = Counts(problem="map fullness is not shown: cannot")
    text = status_text(Status((EVENTS,)), counts, (), "kept", FILE, now=NOW)
    assert text.split("\n\n")[-1] == "map fullness is not shown: cannot"


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
