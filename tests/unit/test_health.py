"""What a program on trial has to show, and what is wanted when it did not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfkeeperd.churn import Withheld
from bpfkeeperd.desired import Desired, ObjectSource, WantedObject
from bpfkeeperd.entries import Manifest
from bpfkeeperd.health import (
    Counter,
    Health,
    MapCounter,
    Reading,
    Runs,
    Trial,
    judge,
    reading,
    value_bytes,
)
from bpfkeeperd.manifest import parse_manifest
from bpfkeeperd.maptypes import BY_NAME
from bpfkeeperd.state import ObjectSpec
from bpfkeeperd.transaction import Transaction
from bpfkeeperd.withheld import former, without

COUNTS = MapCounter("counts", bytes(4), 8, text="counts[0]")
ERRORS = MapCounter("errors", bytes(4), 8, text="errors[0]")
WIDE = MapCounter("wide", bytes(4), 32, text="wide[0]")
RUNS = Runs()


def verdict(
    health: Health, seconds: float, before: list[Reading], now: list[Reading]
) -> tuple[bool, str, str]:
    trial = Trial("one", "count", health)
    counters = health.counters
    readings: list[dict[Counter, Reading]] = [
        dict(zip(counters, values, strict=True)) for values in (before, now)
    ]
    found = judge(trial, seconds, *readings)
    assert found.fault == "" or found.fault.startswith("one/count: ")
    assert found.note == "" or found.note.startswith("one/count is healthy: ")
    fault, note = found.fault.partition(": ")[2], found.note.partition(": ")[2]
    return found.over, fault, note


@pytest.mark.parametrize(
    ("health", "seconds", "before", "now", "expected"),
    [
        (Health(10, COUNTS), 3, [5], [5], (False, "", "")),
        (
            Health(10, COUNTS), 10, [5], [5],
            (True, "counts[0] did not move within 10 s (it stays at 5)", ""),
        ),
        (
            Health(10, COUNTS), 3, [5], [6],
            (True, "", "counts[0] moved from 5 to 6 (3.0 s)"),
        ),
        (Health(10, COUNTS), 3, [5], [4], (True, "", "counts[0] moved from 5 to 4 (3.0 s)")),
        (Health(10, RUNS, ERRORS), 3, [0, 7], [9, 7], (False, "", "")),
        (
            Health(10, RUNS, ERRORS), 10.01, [0, 7], [9, 7],
            (True, "", "its run count moved from 0 to 9, errors[0] did not move (10.0 s)"),
        ),
        (
            Health(10, RUNS, ERRORS), 0.5, [0, 7], [9, 8],
            (True, "errors[0] moved from 7 to 8 after 0.5 s, and must not", ""),
        ),
        (
            Health(10, RUNS, ERRORS), 10, [0, 7], [0, 7],
            (True, "its run count did not move within 10 s (it stays at 0)", ""),
        ),
        (Health(1, None, ERRORS), 0.9, [7], [7], (False, "", "")),
        (Health(1, None, ERRORS), 1, [7], [7], (True, "", "errors[0] did not move (1.0 s)")),
        (Health(1, WIDE), 1, [b"x"], [b"x"], (True, "wide[0] did not move within 1 s", "")),
        (Health(1, WIDE), 0, [b""], [b"x"], (True, "", "wide[0] moved (0.0 s)")),
    ],
)  # fmt: skip
def test_judge(
    health: Health,
    seconds: float,
    before: list[Reading],
    now: list[Reading],
    expected: tuple[bool, str, str],
) -> None:
    assert verdict(health, seconds, before, now) == expected


def test_a_number_is_summed_up_over_the_cpus() -> None:
    each, size = value_bytes(BY_NAME["percpu_array"].number, 12, 4)
    assert (each, size) == (16, 64)
    stored = b"".join(bytes(4) + (10 + cpu).to_bytes(8, "little") + bytes(4) for cpu in range(4))
    assert reading(MapCounter("m", b"", 8, 4), stored, each) == 10 + 11 + 12 + 13
    assert reading(MapCounter("m", b"", 2, 0), stored, each) == 0
    assert value_bytes(BY_NAME["hash"].number, 12, 4) == (12, 12)


def test_an_entry_that_is_not_there_is_one_of_zeros() -> None:
    for size in (1, 8, 32):
        counter = MapCounter("m", b"", size)
        assert reading(counter, None, 32) == reading(counter, bytes(32), 32)
        assert reading(counter, None, 32) != reading(counter, b"\1" + bytes(31), 32)


@given(st.binary(min_size=24, max_size=24), st.integers(0, 23), st.integers(0, 255))
def test_any_byte_of_a_counter_moves_it_and_no_other(stored: bytes, at: int, other: int) -> None:
    changed = stored[:at] + bytes([other]) + stored[at + 1 :]
    for size in (3, 8, 12):
        counter = MapCounter("m", b"", size, 6)
        moved = reading(counter, stored, 24) != reading(counter, changed, 24)
        assert moved == (6 <= at < 6 + size and other != stored[at])


def test_the_manifest() -> None:
    path = Path(__file__).parents[1] / "manifests" / "good" / "health.yaml"
    programs = parse_manifest([("/m.yaml", path.read_bytes())]).objects["firewall"].programs
    first, second = programs["filter"].health, programs["count"].health
    assert first and first.runs and first.moves is None and first.seconds == 10
    assert first.still and (first.still.map, first.still.member) == ("errors", "dropped")
    assert second and second.moves and second.still is None and not second.runs
    assert (second.moves.offset, second.moves.size) == (8, 4)


def wanted(name: str, digest: str) -> WantedObject:
    source = ObjectSource("", ObjectSpec((), ()))
    return WantedObject(name, digest, source, {}, (), ())


def desired(**digests: str) -> Desired:
    objects = {name: wanted(name, digest) for name, digest in digests.items()}
    return Desired(Manifest("/m.yaml"), {}, objects, {})


def test_what_is_wanted_after_a_reload_was_rolled_back() -> None:
    before, now = desired(one="a", two="b"), desired(one="c", two="b", three="d")
    versions = {"one": Withheld("c", "it does not count"), "three": Withheld("d", "x")}
    kept = former(before, now, versions)
    assert {name: found.digest for name, found in kept.objects.items()} == {"one": "a", "two": "b"}
    assert "since it does not count: " in kept.objects["one"].fault
    assert not kept.objects["two"].fault
    first = former(None, now, versions)
    assert {name for name, found in first.objects.items() if found.fault} == {"one", "three"}


def test_a_second_rollback_holds_back_what_it_was_about_alone() -> None:
    first = former(
        desired(one="a", two="b"),
        desired(one="c", two="b"),
        {"one": Withheld("c", "x"), "two": Withheld("b", "x")},
    )
    assert all(found.fault for found in first.objects.values())
    second = former(first, desired(one="d", two="b"), {"one": Withheld("d", "y")})
    assert "since y: " in second.objects["one"].fault and second.objects["one"].digest == "a"
    assert not second.objects["two"].fault, "nobody asked for another version of it"
    third = former(first, desired(one="d", two="e"), {"one": Withheld("d", "y")})
    assert third.objects["two"] == wanted("two", "e")


def test_another_version_is_not_withheld() -> None:
    versions = {"one": Withheld("a", "it does not count")}
    assert without(desired(one="a"), versions).objects["one"].fault
    assert without(desired(one="b"), versions) == desired(one="b")


def test_a_transaction_of_transactions() -> None:
    """Undone last first, over all that it took over; settled in their order."""
    said: list[str] = []
    whole = Transaction()
    for name in ("a", "b"):
        part = Transaction()
        for number in (1, 2):
            part.on_undo(lambda text=f"undo {name}{number}": said.append(text))  # type: ignore[misc]
            part.on_success(lambda text=f"settle {name}{number}": said.append(text))  # type: ignore[misc]
        part.before_waiting(lambda text=f"wait {name}": said.append(text))  # type: ignore[misc]
        whole.absorb(part)
        part.undo()
        part.settle()
    assert said == [], "it is the whole's now"
    whole.wait()
    whole.wait()
    assert said == ["wait a", "wait b"]
    said.clear()
    assert whole.undo() == []
    whole.settle()
    assert said == ["undo b2", "undo b1", "undo a2", "undo a1"]


def test_a_settled_transaction_is_not_undone() -> None:
    said: list[str] = []
    whole = Transaction()
    whole.on_undo(lambda: said.append("undo"))
    whole.on_success(lambda: said.append("settle"))
    whole.settle()
    whole.undo()
    assert said == ["settle"]
