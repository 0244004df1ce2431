"""Why an ID under a name changed."""

from dataclasses import replace

import pytest

from bpfkeeperd.churn import IdChange, MapRecord, Memory, follow
from bpfkeeperd.state import MapIdChange

KNOWN = Memory("boot 1", {"flows": MapRecord(7, made=True, changes={MapIdChange.LOST: 2})})


@pytest.mark.parametrize(
    ("boot", "made", "recreated", "reason"),
    [
        ("boot 1", {"flows"}, {"flows"}, MapIdChange.RECREATED),
        ("boot 1", {"flows"}, set(), MapIdChange.LOST),
        ("boot 1", set(), set(), MapIdChange.REPLACED),
        ("boot 1", {"other"}, {"other"}, MapIdChange.REPLACED),
        ("boot 2", {"flows"}, set(), MapIdChange.REBOOT),
        ("boot 2", {"flows"}, {"flows"}, MapIdChange.REBOOT),
        ("boot 2", set(), set(), MapIdChange.REBOOT),
    ],
)
def test_reasons(boot: str, made: set[str], recreated: set[str], reason: MapIdChange) -> None:
    memory, changes = follow(KNOWN, {"flows": 9}, boot_id=boot, made=made, recreated=recreated)
    assert changes == (IdChange("flows", 7, 9, reason),)
    expected = {MapIdChange.LOST: 2}
    expected[reason] = expected.get(reason, 0) + 1
    assert memory == Memory(boot, {"flows": MapRecord(9, "flows" in made, expected)})


def test_the_same_id_is_no_change() -> None:
    assert follow(KNOWN, {"flows": 7}, boot_id="boot 1") == (KNOWN, ())


def test_the_same_id_in_another_boot_is_another_map() -> None:
    _, changes = follow(KNOWN, {"flows": 7}, boot_id="boot 2")
    assert changes == (IdChange("flows", 7, 7, MapIdChange.REBOOT),)


@pytest.mark.parametrize("made", [True, False])
def test_the_first_sight_is_no_change(made: bool) -> None:
    names = {"new"} if made else set()
    memory, changes = follow(KNOWN, {"new": 3}, boot_id="boot 1", made=names)
    assert changes == ()
    assert memory.maps["new"] == MapRecord(3, made=made)
    assert memory.maps["flows"] == KNOWN.maps["flows"], "one that is not pinned now is remembered"


def test_a_pin_that_comes_back_with_its_id_is_no_change_but_ours() -> None:
    stranger = Memory("boot 1", {"flows": MapRecord(7)})
    memory, changes = follow(stranger, {"flows": 7}, boot_id="boot 1", made={"flows"})
    assert changes == () and memory.maps["flows"].made


def test_a_pin_that_stays_ours_is_not_written_anew() -> None:
    memory, _ = follow(KNOWN, {"flows": 7}, boot_id="boot 1", made={"flows"})
    assert memory == KNOWN and memory.maps["flows"] is KNOWN.maps["flows"]


def test_a_pin_that_somebody_replaced_is_not_ours_any_more() -> None:
    memory, _ = follow(KNOWN, {"flows": 9}, boot_id="boot 1")
    assert not memory.maps["flows"].made


def test_a_map_that_was_away_for_a_while_is_compared_with_the_last_one() -> None:
    memory, changes = follow(KNOWN, {}, boot_id="boot 1")
    assert changes == () and memory == KNOWN
    _, changes = follow(memory, {"flows": 9}, boot_id="boot 1", made={"flows"})
    assert changes == (IdChange("flows", 7, 9, MapIdChange.LOST),)


def test_nothing_given_is_changed() -> None:
    maps = dict(KNOWN.maps)
    follow(KNOWN, {"flows": 9, "new": 1}, boot_id="boot 2")
    assert KNOWN.maps == maps


def test_last_ids() -> None:
    assert KNOWN.last_ids("boot 1") == {"flows": 7}
    assert KNOWN.last_ids("boot 2") == {}, "IDs begin anew"
    assert replace(KNOWN, maps={}).last_ids("boot 1") == {}


def test_the_line() -> None:
    change = IdChange("flows", 7, 9, MapIdChange.LOST)
    assert str(change) == "map flows has a new ID: 7 became 9 (lost)"


def test_a_renewed_map_carries_on() -> None:
    names = {"flows"}
    _, changes = follow(KNOWN, {"flows": 9}, boot_id="boot 1", made=names, renewed=names)
    assert changes == (IdChange("flows", 7, 9, MapIdChange.RENEWED),)


def test_a_record_gets_another_name_with_its_map() -> None:
    memory, changes = follow(KNOWN, {"streams": 7}, boot_id="boot 1", renamed={"streams": "flows"})
    assert changes == ()
    assert memory.maps == {"streams": KNOWN.maps["flows"]}, "it is still ours, and counted"


def test_a_map_that_is_renewed_under_another_name() -> None:
    names = {"streams"}
    memory, changes = follow(
        KNOWN,
        {"streams": 9},
        boot_id="boot 1",
        made=names,
        renewed=names,
        renamed={"streams": "flows"},
    )
    assert changes == (IdChange("streams", 7, 9, MapIdChange.RENEWED),)
    assert memory.maps["streams"].changes == {MapIdChange.LOST: 2, MapIdChange.RENEWED: 1}
    assert "flows" not in memory.maps


def test_a_name_that_was_never_seen_is_renamed() -> None:
    memory, changes = follow(KNOWN, {"new": 3}, boot_id="boot 1", renamed={"new": "old"})
    assert changes == () and memory.maps["new"] == MapRecord(3)
