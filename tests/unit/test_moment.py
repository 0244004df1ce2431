"""Figures of a moment as samples."""

import dataclasses

import pytest

from bpfkeeperd.exposition import Blocks
from bpfkeeperd.moment import (
    OtherMap,
    SlowFigures,
    machine_blocks,
    map_blocks,
    missing,
    other_blocks,
    program_blocks,
    since_block,
)
from bpfkeeperd.series import KeptAttachment, KeptMap, KeptProgram
from bpfkeeperd.state import ProgramFigures

INFO = '{map="m",counted_by="'


def kept(way: str = "kfunc", capacity: int = 100, **fields: object) -> KeptMap:
    one = KeptMap("m", 7, '{map="m"}', INFO, capacity, way, ())
    return dataclasses.replace(one, **fields)  # type: ignore[arg-type]


def lines(blocks: Blocks) -> dict[str, list[str]]:
    """Family to samples without its name."""
    return {
        name: [line.removeprefix(f"bpfkeeper_{name}") for line in text.splitlines()]
        for name, text in blocks.items()
        if text
    }


def slow(entries: int | None, way: str = "batch", error: str = "") -> SlowFigures:
    return SlowFigures(entries, way if entries is not None else "", 2.5, 4096, error)


def test_a_map_that_is_counted_now() -> None:
    blocks, faulty = map_blocks([kept()], {7: 25}, {7: slow(90)})
    assert faulty == [] and lines(blocks) == {
        "map_entries": ['{map="m"} 25'],
        "map_fill_ratio": ['{map="m"} 0.25'],
        "map_info": [f'{INFO}kfunc"}} 1'],
        "map_memory_bytes": ['{map="m"} 4096'],
    }


def test_a_map_that_is_counted_from_time_to_time() -> None:
    blocks, faulty = map_blocks([kept("")], {}, {7: slow(90)})
    assert faulty == [] and lines(blocks) == {
        "map_entries": ['{map="m"} 90'],
        "map_fill_ratio": ['{map="m"} 0.9'],
        "map_info": [f'{INFO}batch"}} 1'],
        "map_count_age_seconds": ['{map="m"} 2.500'],
        "map_memory_bytes": ['{map="m"} 4096'],
    }


def test_inner_maps_however_they_are_counted() -> None:
    outer = kept("scan", inner=(1, 2, 3, 4))
    blocks, _ = map_blocks([outer], {7: 4, 1: 10}, {2: slow(5), 3: slow(None)})
    assert lines(blocks)["map_inner_entries"] == ['{map="m"} 15']
    assert "map_inner_entries" not in lines(map_blocks([outer], {7: 4}, {3: slow(None)})[0])


@pytest.mark.parametrize("entries", [None, 90])
def test_a_map_that_cannot_be_read_is_one_error(entries: int | None) -> None:
    """What was counted before is shown, and how old it is."""
    blocks, faulty = map_blocks([kept("")], {}, {7: slow(entries, error="EPERM")})
    assert faulty == ["m"]
    assert ("map_entries" in lines(blocks)) == (entries is not None)
    assert ("map_count_age_seconds" in lines(blocks)) == (entries is not None)


def test_whatever_is_wrong_with_a_map_is_one_error() -> None:
    """Its memory, and its count, cannot be had."""
    assert map_blocks([kept()], {7: 25}, {7: slow(None, error="EPERM")})[1] == ["m"]
    assert map_blocks([kept()], {}, {7: slow(None, error="EPERM")})[1] == ["m"]


@pytest.mark.parametrize(
    ("way", "counts", "id_", "errors", "shown"),
    [
        ("kfunc", {}, 7, ["m"], "kfunc"),
        ("field", {}, 7, ["m"], "field"),
        ("scan", {}, 7, [], ""),  # too large to be scanned
        ("estimate", {}, 7, [], ""),
        ("", {}, 7, [], ""),
        ("kfunc", {}, 0, [], "kfunc"),  # nothing is pinned
        ("kfunc", None, 7, [], "kfunc"),  # nothing could be counted, which is an error of its own
    ],
)
def test_a_map_that_is_not_among_the_counts(
    way: str, counts: dict[int, int] | None, id_: int, errors: list[str], shown: str
) -> None:
    blocks, faulty = map_blocks([kept(way, id=id_)], counts, {})
    assert faulty == errors
    assert lines(blocks) == {"map_info": [f'{INFO}{shown}"}} 1']}
    assert missing([kept(way, id=id_)], {}) == bool(id_ and way in ("kfunc", "field"))


def test_the_machine() -> None:
    blocks = machine_blocks(5, ids_allocated=999, exact=True, id_limit=2**31 - 2, headroom=7)
    assert lines(blocks) == {
        "kernel_maps": [" 5"],
        "kernel_map_ids_allocated_total": [" 999"],
        "kernel_map_ids_exact": [" 1"],
        "kernel_map_id_limit": [f" {2**31 - 2}"],
        "kernel_map_id_headroom": [" 7"],
    }


# ---- maps of others ----

OTHERS = [
    OtherMap(1, "flows", 1, 100, "/sys/fs/bpf/a"),
    OtherMap(2, "flows", 1, 100),
    OtherMap(3, "flows", 1, 50),
    OtherMap(9, "data", 2, 1),
]


def test_maps_of_others_by_name_type_and_pin() -> None:
    found = lines(other_blocks(OTHERS, {1: 10, 2: 20, 3: 45}, 10))
    pinned = '{name="flows",type="hash",path="/sys/fs/bpf/a"}'
    nameless, data = '{name="flows",type="hash",path=""}', '{name="data",type="array",path=""}'
    assert found == {
        "observed_maps": [f"{pinned} 1", f"{data} 1", f"{nameless} 2"],
        "observed_map_id": [f"{pinned} 1", f"{data} 9", f"{nameless} 3"],
        "observed_map_entries": [f"{pinned} 10", f"{nameless} 65"],
        "observed_map_max_entries": [f"{pinned} 100", f"{data} 1", f"{nameless} 150"],
        "observed_map_fill_ratio": [f"{pinned} 0.1", f"{nameless} 0.9"],
        "observed_maps_left_out": [" 0"],
    }


def test_a_map_of_others_is_never_more_than_full() -> None:
    """A bloom filter can hold more than its max_entries."""
    found = lines(other_blocks(OTHERS[:1], {1: 250}, 10))
    assert [line.split()[-1] for line in found["observed_map_entries"]] == ["250"]
    assert [line.split()[-1] for line in found["observed_map_fill_ratio"]] == ["1.0"]


@pytest.mark.parametrize(("most", "left"), [(1, 3), (2, 2), (3, 0)])
def test_there_is_an_end_to_the_series(most: int, left: int) -> None:
    found = lines(other_blocks(OTHERS, {}, most))
    assert len(found["observed_maps"]) == most
    assert found["observed_maps"][0].startswith('{name="flows",type="hash",path="/sys/fs/bpf/a"}')
    assert found["observed_maps_left_out"] == [f" {left}"]


# ---- programs ----

PROGRAM = KeptProgram('{object="o",program="p"}', 70, "/pins/p", "/pins/p")
FIGURES = ProgramFigures(
    id=70,
    type=1,
    instructions=9,
    verified=1234,
    run_count=5,
    run_time_ns=2_500_000_000,
    misses=3,
    load_time_ns=10_000_000_000,
    memory_bytes=0,
)


def programs(figures: ProgramFigures = FIGURES, *, statistics: bool = True) -> dict[str, list[str]]:
    blocks, faulty = program_blocks(
        [PROGRAM], {"/pins/p": figures}, {70: 8192}, statistics=statistics, boot=1000.0
    )
    assert faulty == 0
    return lines(blocks)


def test_a_program() -> None:
    mine = PROGRAM.labels
    assert programs() == {
        "program_runs_total": [f"{mine} 5"],
        "program_run_seconds_total": [f"{mine} 2.5"],
        "program_misses_total": [f"{mine} 3"],
        "program_verified_instructions": [f"{mine} 1234"],
        "program_loaded_timestamp_seconds": [f"{mine} 1010.000"],
        "program_memory_bytes": [f"{mine} 8192"],
        "program_statistics_enabled": [" 1"],
    }


def test_runs_that_are_not_counted_are_no_zeros() -> None:
    unseen = dataclasses.replace(FIGURES, run_count=0, run_time_ns=0, verified=0)
    found = programs(unseen, statistics=False)
    assert not found.keys() & {"program_runs_total", "program_run_seconds_total"}
    assert "program_verified_instructions" not in found
    assert "program_runs_total" in programs(unseen)
    assert "program_runs_total" in programs(statistics=False), "it was counted for a while"


def test_a_program_behind_a_stub_has_the_runs_of_the_stub() -> None:
    behind = dataclasses.replace(PROGRAM, runs_path="/pins/stub")
    stub = dataclasses.replace(FIGURES, id=71, run_count=99, verified=2)
    blocks, _ = program_blocks(
        [behind], {"/pins/p": FIGURES, "/pins/stub": stub}, {}, statistics=True, boot=0
    )
    assert lines(blocks)["program_runs_total"] == [f"{PROGRAM.labels} 99"]
    assert lines(blocks)["program_verified_instructions"] == [f"{PROGRAM.labels} 1234"]


def test_a_program_whose_pin_went() -> None:
    blocks, faulty = program_blocks([PROGRAM], {}, {}, statistics=False, boot=0)
    assert faulty == 1 and lines(blocks) == {"program_statistics_enabled": [" 0"]}


@pytest.mark.parametrize(
    ("pinned", "since"), [(50.0, ["{x} 60.000"]), (70.0, ["{x} 70.000"]), (None, [])]
)
def test_since_when_a_hook_is_served(pinned: float | None, since: list[str]) -> None:
    """By this program, which was loaded at 60."""
    attachment = KeptAttachment("{x}", 70, "/pins/l")
    found = lines(since_block([attachment], {70: 60.0}, [pinned]))
    assert found.get("attachment_since_timestamp_seconds", []) == since
    assert lines(since_block([attachment], {}, [pinned])) == {}
