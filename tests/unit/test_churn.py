"""Why an ID under a name changed."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfkeeperd.churn import (
    IdChange,
    MapRecord,
    Memory,
    OwnPins,
    at_start,
    before_start,
    follow,
)
from bpfkeeperd.state import LastChange, MapIdChange

KNOWN = Memory(
    "boot 1", {"flows": MapRecord(7, made=True, changes={MapIdChange.LOST: 2}, since=50.0)}
)
NOW = 100.0
MADE, RECREATED, RENEWED = MapIdChange.LOST, MapIdChange.RECREATED, MapIdChange.RENEWED


def look(
    memory: Memory,
    pinned: Mapping[str, int],
    boot_id: str = "boot 1",
    own: OwnPins | None = None,
    formers: Mapping[str, str] | None = None,
    renamed: Mapping[str, str] | None = None,
    pinned_at: Mapping[str, float] | None = None,
) -> tuple[Memory, tuple[IdChange, ...]]:
    return follow(
        memory,
        pinned,
        boot_id=boot_id,
        at=NOW,
        pinned_at=pinned_at or {},
        own=own or {},
        formers=formers or {},
        renamed=renamed or {},
    )


@pytest.mark.parametrize(
    ("pinned_at", "expected"),
    [
        ({"flows": 75.0}, 75.0),
        ({}, NOW),
        ({"other": 75.0}, NOW),
        ({"flows": NOW + 9}, NOW),  # a clock that was set back
        ({"flows": 3.0}, 50.0),  # not before the former map was there
    ],
)
def test_when_an_id_changed(pinned_at: Mapping[str, float], expected: float) -> None:
    """When the map was pinned there, not when somebody looked."""
    memory, _ = look(KNOWN, {"flows": 9}, pinned_at=pinned_at)
    record = memory.maps["flows"]
    assert record.last_change and (record.since, record.last_change.at) == (expected, expected)
    again, _ = look(memory, {"flows": 9}, pinned_at={"flows": 80.0})
    assert again == memory, "it stays as it was"


@pytest.mark.parametrize(
    ("boot", "own", "reason"),
    [
        ("boot 1", {"flows": {9: RECREATED}}, RECREATED),
        ("boot 1", {"flows": {9: RENEWED}}, RENEWED),
        ("boot 1", {"flows": {9: MADE}}, MapIdChange.LOST),
        ("boot 1", {"flows": {7: MADE, 9: RECREATED}}, RECREATED),
        ("boot 1", {}, MapIdChange.REPLACED),
        ("boot 1", {"other": {9: RECREATED}}, MapIdChange.REPLACED),
        # The keeper's own map went before anybody saw it.
        ("boot 1", {"flows": {8: RECREATED}}, MapIdChange.REPLACED),
        ("boot 2", {"flows": {9: MADE}}, MapIdChange.REBOOT),
        ("boot 2", {"flows": {9: RECREATED}}, MapIdChange.REBOOT),
        ("boot 2", {}, MapIdChange.REBOOT),
    ],
)
def test_reasons(boot: str, own: OwnPins, reason: MapIdChange) -> None:
    memory, changes = look(KNOWN, {"flows": 9}, boot, own)
    assert changes == (IdChange("flows", 7, 9, reason),)
    expected = {MapIdChange.LOST: 2}
    expected[reason] = expected.get(reason, 0) + 1
    made = 9 in own.get("flows", {})
    last = LastChange(reason, 7, NOW)
    assert memory == Memory(boot, {"flows": MapRecord(9, made, expected, NOW, last)})


def test_the_same_id_is_no_change() -> None:
    assert look(KNOWN, {"flows": 7}) == (KNOWN, ())


def test_the_same_id_in_another_boot_is_another_map() -> None:
    memory, changes = look(KNOWN, {"flows": 7}, "boot 2")
    assert changes == (IdChange("flows", 7, 7, MapIdChange.REBOOT),)
    assert look(memory, {"flows": 7}, "boot 2") == (memory, ()), "once"


def test_a_map_that_comes_later_after_a_boot() -> None:
    memory, changes = look(KNOWN, {}, "boot 2")
    assert changes == () and memory.last_ids("boot 2") == {} and not memory.maps["flows"].made
    memory, _ = look(memory, {}, "boot 3")
    memory, changes = look(memory, {"flows": 3}, "boot 3", {"flows": {3: MADE}})
    assert changes == (IdChange("flows", 7, 3, MapIdChange.REBOOT),), "its last ID is still known"
    assert memory.maps["flows"].past_id == 0 and memory.maps["flows"].made
    assert look(memory, {"flows": 3}, "boot 3")[1] == ()


@pytest.mark.parametrize("made", [True, False])
def test_the_first_sight_is_no_change(made: bool) -> None:
    memory, changes = look(KNOWN, {"new": 3}, own={"new": {3: MADE}} if made else {})
    assert changes == ()
    assert memory.maps["new"] == MapRecord(3, made=made, since=NOW)
    assert memory.maps["flows"] == KNOWN.maps["flows"], "one that is not pinned now is remembered"


def test_a_pin_that_comes_back_with_its_id_is_no_change_but_ours() -> None:
    stranger = Memory("boot 1", {"flows": MapRecord(7, since=50.0)})
    memory, changes = look(stranger, {"flows": 7}, own={"flows": {7: MADE}})
    assert changes == () and memory.maps["flows"] == MapRecord(7, made=True, since=50.0)


def test_a_pin_that_stays_ours_is_not_written_anew() -> None:
    memory, _ = look(KNOWN, {"flows": 7}, own={"flows": {7: MADE}})
    assert memory == KNOWN and memory.maps["flows"] is KNOWN.maps["flows"]


def test_a_pin_that_somebody_replaced_is_not_ours_any_more() -> None:
    memory, _ = look(KNOWN, {"flows": 9})
    assert not memory.maps["flows"].made


def test_a_map_that_was_away_for_a_while_is_compared_with_the_last_one() -> None:
    memory, changes = look(KNOWN, {})
    assert changes == () and memory == KNOWN
    assert look(memory, {"flows": 7}) == (KNOWN, ())
    _, changes = look(memory, {"flows": 9}, own={"flows": {9: MADE}})
    assert changes == (IdChange("flows", 7, 9, MapIdChange.LOST),)
    _, changes = look(memory, {"flows": 9})
    assert changes == (IdChange("flows", 7, 9, MapIdChange.REPLACED),)


def test_nothing_given_is_changed() -> None:
    maps = dict(KNOWN.maps)
    look(KNOWN, {"flows": 9, "new": 1}, "boot 2")
    assert KNOWN.maps == maps


def test_last_ids() -> None:
    assert KNOWN.last_ids("boot 1") == {"flows": 7}
    assert KNOWN.last_ids("boot 2") == {}, "IDs begin anew"
    assert replace(KNOWN, maps={}).last_ids("boot 1") == {}


def test_the_line() -> None:
    change = IdChange("flows", 7, 9, MapIdChange.LOST)
    assert str(change) == "map flows has a new ID: 7 became 9 (lost)"
    told = "map flows has a new ID: 7 became 9 (lost, while no daemon ran)"
    assert str(before_start(change)) == str(at_start(change)) == told


@pytest.mark.parametrize("reason", MapIdChange)
def test_what_a_start_finds(reason: MapIdChange) -> None:
    change = IdChange("flows", 7, 9, reason)
    away, killed = "while no daemon ran", "by a keeper that was killed"
    assert before_start(change).when == {
        MapIdChange.REPLACED: away,
        MapIdChange.LOST: away,
        MapIdChange.REBOOT: "",
    }.get(reason, killed)
    assert at_start(change).when == (away if reason is MapIdChange.LOST else "")


def test_a_record_gets_another_name_with_its_map() -> None:
    memory, changes = look(KNOWN, {"streams": 7}, renamed={"streams": "flows"})
    assert changes == ()
    assert memory.maps == {"streams": KNOWN.maps["flows"]}, "it is still ours, and counted"


def test_a_map_that_is_renewed_under_another_name() -> None:
    own = {"streams": {9: RENEWED}}
    memory, changes = look(KNOWN, {"streams": 9}, own=own, renamed={"streams": "flows"})
    assert changes == (IdChange("streams", 7, 9, RENEWED),)
    assert memory.maps["streams"].changes == {MapIdChange.LOST: 2, RENEWED: 1}
    assert "flows" not in memory.maps
    assert look(KNOWN, {"streams": 9}, own=own, formers={"streams": "flows"}) == (memory, changes)


def test_a_name_that_was_never_seen_is_renamed() -> None:
    memory, changes = look(KNOWN, {"new": 3}, renamed={"new": "old"})
    assert changes == () and memory.maps["new"] == MapRecord(3, since=NOW)


def test_renamed_by_a_keeper_that_could_not_say_so() -> None:
    formers = {"streams": "flows"}
    memory, changes = look(KNOWN, {"streams": 7}, formers=formers)
    assert changes == () and memory.maps == {"streams": KNOWN.maps["flows"]}
    memory, changes = look(KNOWN, {"streams": 9}, formers=formers)
    assert changes == () and memory.maps["streams"] == MapRecord(9, since=NOW), "another map"
    assert memory.maps["flows"] == KNOWN.maps["flows"]
    memory, _ = look(KNOWN, {"streams": 7, "flows": 7}, formers=formers)
    assert memory.maps["flows"] == KNOWN.maps["flows"], "both names are there"
    memory, _ = look(KNOWN, {"streams": 7}, "boot 2", formers=formers)
    assert memory.maps["streams"] == MapRecord(7, since=NOW), "a number of another boot"


def test_renamed_in_the_namespace_of_another_file() -> None:
    old, new = f"tc/{'a' * 40}/jumps", f"tc/{'b' * 40}/jumps"
    known = Memory("boot 1", {old: KNOWN.maps["flows"]})
    assert look(known, {new: 7})[0].maps == {new: KNOWN.maps["flows"]}
    assert set(look(known, {new: 8})[0].maps) == {old, new}
    assert set(look(known, {f"tc/{'b' * 40}/leaps": 7})[0].maps) == {old, f"tc/{'b' * 40}/leaps"}


def test_counts_of_a_name_that_another_map_gets_do_not_go_down() -> None:
    there = MapRecord(3, changes={MapIdChange.LOST: 1, RECREATED: 4})
    known = replace(KNOWN, maps={**KNOWN.maps, "streams": there})
    memory, _ = look(known, {"streams": 7}, renamed={"streams": "flows"})
    assert memory.maps["streams"].changes == {MapIdChange.LOST: 3, RECREATED: 4}
    assert memory.maps["streams"].id == 7 and memory.maps["streams"].made


NAMES = st.sampled_from(["a", "b", "c"])
IDS = st.integers(1, 4)
LOOKS = st.lists(
    st.tuples(
        st.dictionaries(NAMES, IDS),
        st.dictionaries(NAMES, st.dictionaries(IDS, st.sampled_from([MADE, RECREATED, RENEWED]))),
        st.dictionaries(NAMES, NAMES, max_size=1),
        st.sampled_from(["boot 1"] * 4 + ["boot 2"]),
    ),
    max_size=8,
)


@given(LOOKS)
def test_counts_of_a_name_never_go_down_while_it_is_there(
    looks: list[tuple[dict[str, int], dict[str, dict[int, MapIdChange]], dict[str, str], str]],
) -> None:
    memory = Memory()
    for pinned, own, formers, boot in looks:
        before = memory
        wanted = {name: old for name, old in formers.items() if old not in pinned}
        memory, changes = look(before, pinned, boot, own, wanted)
        for name, map_id in pinned.items():
            record = memory.maps[name]
            assert record.id == map_id
            counted = [change for change in changes if change.name == name]
            then = before.maps.get(name)
            if then is None:
                continue
            for reason in MapIdChange:
                more = sum(change.reason is reason for change in counted)
                assert record.changes.get(reason, 0) == then.changes.get(reason, 0) + more
            changed = boot != before.boot_id or then.id != map_id
            assert len(counted) == changed


def test_links_of_another_boot_are_nobodys() -> None:
    """Their IDs mean something else now."""
    adopted = {"one/count/eth0": 5}
    for boot, left in (("boot 1", adopted), ("boot 2", {})):
        memory, _ = look(replace(KNOWN, adopted=adopted), {"flows": 7}, boot)
        assert memory.adopted == left
