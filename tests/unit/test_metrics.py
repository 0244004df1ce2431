"""What a scrape shows of a status, and that nothing in a status can spoil a scrape."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

import bpfkeeperd
from bpfkeeperd.counting import Survey
from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.errors import KernelError
from bpfkeeperd.mapids import Position
from bpfkeeperd.maptypes import BY_NAME
from bpfkeeperd.metrics import Metrics, Sources
from bpfkeeperd.series import StatusSeries, status_series
from bpfkeeperd.state import (
    AttachmentStatus,
    InnerStatus,
    MapIdChange,
    MapStatus,
    ProgramFigures,
    ProgramStatus,
    ReloadResult,
    ReloadStatus,
    Status,
)
from tests.prometheus.server import promtool

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def a_map(name: str, map_type: str = "hash", **fields: Any) -> MapStatus:
    return dataclasses.replace(
        MapStatus(
            name=name,
            id=42,
            type=BY_NAME[map_type].number,
            key_size=16,
            value_size=8,
            max_entries=100,
            policy=MismatchPolicy.FAIL,
        ),
        **fields,
    )


STATUS = Status(
    maps=(
        a_map("flows", reuses=3, changes={MapIdChange.LOST: 2}),
        a_map("events", "ringbuf", id=43, key_size=0, value_size=0, max_entries=4096),
        a_map("settings", "array", id=44, policy=MismatchPolicy.RECREATE),
        a_map("storage", "sk_storage", id=45, max_entries=0),
        a_map("absent", id=None),
    ),
    attachments=(
        AttachmentStatus("sockops", "add", "sockops", "/web.slice", up=True),
        AttachmentStatus("filter", "drop", "xdp", "eth0", up=False),
    ),
    drift={"attachment": 1, "map": 0},
    reloads=ReloadStatus(
        results={ReloadResult.OK: 3, ReloadResult.REJECTED: 1},
        duration_seconds_sum=1.75,
        duration_buckets=((0.1, 1), (1.0, 3), (math.inf, 4)),
        last_success_timestamp_seconds=1_700_000_000.5,
        last_result=ReloadResult.REJECTED,
    ),
)
COUNTS: Mapping[int, int] = {42: 25, 43: 1024, 999: 7}


def counted_by(map_type: int) -> str:
    return {BY_NAME["hash"].number: "kfunc", BY_NAME["ringbuf"].number: "field"}.get(map_type, "")


def metrics_of(
    status: Status | Exception = STATUS, counts: Mapping[int, int] | Exception = COUNTS
) -> Metrics:
    def given_status() -> Status:
        if isinstance(status, Exception):
            raise status
        return status

    def given_counts() -> Mapping[int, int]:
        if isinstance(counts, Exception):
            raise counts
        return counts

    return Metrics(sources(given_status, given_counts))


def sources(status: Callable[[], Status], counts: Callable[[], Mapping[int, int]]) -> Sources:
    return Sources(
        status=status,
        survey=lambda: Survey(counts(), 5, 999),
        counted_by=counted_by,
        slow=dict,
        programs=lambda paths: {},
        program_memory=dict,
        statistics=lambda: False,
        position=lambda highest: Position(highest, True),
        others=lambda status: None,
    )


def scrape(metrics: Metrics) -> Samples:
    """All samples but those of the process, as a Prometheus parser reads them."""
    text, _ = metrics.render()
    samples: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples
            if not sample.name.startswith("process_"):
                samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"bpfkeeper_{name}", frozenset(labels.items())))


def labels_of(samples: Samples, name: str) -> set[frozenset[tuple[str, str]]]:
    return {labels for found, labels in samples if found == f"bpfkeeper_{name}"}


def maps_of(samples: Samples, name: str) -> set[str]:
    return {dict(labels)["map"] for labels in labels_of(samples, name)}


def test_the_whole_text_of_a_small_status() -> None:
    status = Status(maps=(a_map("flows"),))
    text = metrics_of(status).render()[0].decode()
    lines = [
        line
        for line in text.splitlines()
        if line.startswith("bpfkeeper_") and "_reload" not in line
    ]
    assert lines == [
        'bpfkeeper_map_id{map="flows"} 42',
        'bpfkeeper_map_id_changes_total{map="flows",reason="recreated"} 0',
        'bpfkeeper_map_id_changes_total{map="flows",reason="migrated"} 0',
        'bpfkeeper_map_id_changes_total{map="flows",reason="renewed"} 0',
        'bpfkeeper_map_id_changes_total{map="flows",reason="replaced"} 0',
        'bpfkeeper_map_id_changes_total{map="flows",reason="lost"} 0',
        'bpfkeeper_map_id_changes_total{map="flows",reason="reboot"} 0',
        'bpfkeeper_map_reuses_total{map="flows"} 0',
        'bpfkeeper_map_entries{map="flows"} 25',
        'bpfkeeper_map_max_entries{map="flows"} 100',
        'bpfkeeper_map_fill_ratio{map="flows"} 0.25',
        'bpfkeeper_map_info{map="flows",type="hash",key_size="16",value_size="8",policy="fail",'
        'counted_by="kfunc"} 1',
        'bpfkeeper_scrape_errors_total{map=""} 0',
        'bpfkeeper_scrape_errors_total{map="flows"} 0',
        "bpfkeeper_kernel_maps 5",
        "bpfkeeper_kernel_map_ids_allocated_total 999",
        "bpfkeeper_kernel_map_ids_exact 1",
        "bpfkeeper_kernel_map_id_limit 2147483646",
        "bpfkeeper_kernel_map_id_headroom 2147482647",
        "bpfkeeper_program_statistics_enabled 0",
        "bpfkeeper_heal_given_up 0",
        f'bpfkeeper_build_info{{version="{bpfkeeperd.__version__}"}} 1',
    ]


def test_maps() -> None:
    samples = scrape(metrics_of())
    assert value(samples, "map_id", map="settings") == 44
    assert value(samples, "map_reuses_total", map="flows") == 3
    assert value(samples, "map_id_changes_total", map="flows", reason="lost") == 2
    assert value(samples, "map_id_changes_total", map="events", reason="lost") == 0
    assert value(samples, "map_entries", map="events") == 1024
    assert value(samples, "map_fill_ratio", map="events") == 0.25


def test_inner_maps_are_summed_once() -> None:
    """42 stands in two slots, 99 is not counted."""
    inner = tuple(InnerStatus(str(slot), id_, 1, 10) for slot, id_ in enumerate((42, 43, 42, 99)))
    maps = (a_map("outer", "array_of_maps", inner=inner), a_map("none", inner=inner[3:]))
    samples = scrape(metrics_of(Status(maps=maps), counts={42: 5, 43: 2}))
    assert value(samples, "map_inner_entries", map="outer") == 7
    assert maps_of(samples, "map_inner_entries") == {"outer"}


def test_what_a_map_has_not_is_not_there() -> None:
    samples = scrape(metrics_of())
    all_maps = {"flows", "events", "settings", "storage", "absent"}
    assert maps_of(samples, "map_info") == all_maps
    assert maps_of(samples, "map_reuses_total") == all_maps
    assert maps_of(samples, "map_id") == all_maps - {"absent"}
    assert maps_of(samples, "map_max_entries") == all_maps - {"storage"}
    assert maps_of(samples, "map_entries") == {"flows", "events"}
    assert maps_of(samples, "map_fill_ratio") == {"flows", "events"}


def test_info_says_how_a_map_is_counted() -> None:
    rows = [dict(labels) for labels in labels_of(scrape(metrics_of()), "map_info")]
    assert {row["map"]: row["counted_by"] for row in rows} == {
        "flows": "kfunc",
        "events": "field",
        "settings": "",
        "storage": "",
        "absent": "kfunc",
    }


@pytest.mark.parametrize(("count", "entries", "ratio"), [(-5, 0, 0), (0, 0, 0), (250, 250, 1)])
def test_fill_stays_within_0_and_1(count: int, entries: int, ratio: float) -> None:
    samples = scrape(metrics_of(counts={42: count}))
    assert value(samples, "map_entries", map="flows") == entries
    assert value(samples, "map_fill_ratio", map="flows") == ratio


def test_attachments_and_drift() -> None:
    samples = scrape(metrics_of())
    up = {"object": "sockops", "program": "add", "target": "/web.slice"}
    down = {"object": "filter", "program": "drop", "target": "eth0"}
    assert value(samples, "attachment_up", **up) == 1
    assert value(samples, "attachment_up", **down) == 0
    assert value(samples, "drift", kind="attachment") == 1
    assert value(samples, "drift", kind="map") == 0


def test_reloads() -> None:
    samples = scrape(metrics_of())
    assert value(samples, "reloads_total", result="ok") == 3
    assert value(samples, "reloads_total", result="failed") == 0
    assert value(samples, "reloads_total", result="rejected") == 1
    assert value(samples, "last_reload_result", result="ok") == 0
    assert value(samples, "last_reload_result", result="failed") == 0
    assert value(samples, "last_reload_result", result="rejected") == 1
    assert value(samples, "last_reload_success_timestamp_seconds") == 1_700_000_000.5
    assert value(samples, "reload_duration_seconds_bucket", le="0.1") == 1
    assert value(samples, "reload_duration_seconds_bucket", le="1.0") == 3
    assert value(samples, "reload_duration_seconds_bucket", le="+Inf") == 4
    assert value(samples, "reload_duration_seconds_count") == 4
    assert value(samples, "reload_duration_seconds_sum") == 1.75


def test_before_the_first_reload() -> None:
    samples = scrape(metrics_of(Status()))
    assert value(samples, "reload_duration_seconds_bucket", le="+Inf") == 0
    assert value(samples, "reload_duration_seconds_count") == 0
    assert value(samples, "last_reload_success_timestamp_seconds") is None
    assert value(samples, "last_reload_result", result="ok") is None
    assert value(samples, "reloads_total", result="ok") == 0


def test_process_metrics_are_there_and_no_others() -> None:
    text = metrics_of().render()[0].decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert "process_open_fds" in names
    assert {name.partition("_")[0] for name in names} == {"bpfkeeper", "process"}


@pytest.mark.parametrize(
    "name", ["größe", 'a"b', "a\\b", "a\nb", "a\\nb", "{}", "日本語", "a b", "a\rb", "\U0001f41d"]
)
def test_a_name_comes_out_as_it_went_in(name: str) -> None:
    text = metrics_of(Status(maps=(a_map(name),))).render()[0].decode()
    (line,) = (
        line
        for line in text.split("\n")
        if line.startswith("bpfkeeper_map_id{") and line.endswith(" 42")
    )
    quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    assert line == f'bpfkeeper_map_id{{map="{quoted}"}} 42'


def test_a_name_that_is_no_utf8() -> None:
    samples = scrape(metrics_of(Status(maps=(a_map("a\udcff"), a_map("good")))))
    assert maps_of(samples, "map_id") == {"a\\udcff", "good"}


class Broken:
    """A value that nothing can be done with."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __hash__ = None  # type: ignore[assignment]


BROKEN = cast(Any, Broken())


@pytest.mark.parametrize(
    "field", ["id", "type", "key_size", "max_entries", "reuses", "changes", "policy"]
)
def test_a_bad_map_leaves_the_others(field: str) -> None:
    bad = dataclasses.replace(a_map("bad"), **{field: BROKEN})
    metrics = metrics_of(Status(maps=(a_map("first"), bad, a_map("last"))))
    for scrapes in (1, 2):
        samples = scrape(metrics)
        assert maps_of(samples, "map_entries") == {"first", "last"}
        assert maps_of(samples, "map_info") == {"first", "last"}
        assert maps_of(samples, "map_reuses_total") == {"first", "last"}
        assert value(samples, "scrape_errors_total", map="bad") == scrapes
        assert value(samples, "scrape_errors_total", map="first") == 0
        assert value(samples, "scrape_errors_total", map="") == 0


def test_a_count_that_is_no_number_is_the_error_of_its_map() -> None:
    samples = scrape(metrics_of(counts=cast(Any, {42: "many", 43: 7})))
    assert value(samples, "scrape_errors_total", map="flows") == 1
    assert value(samples, "map_entries", map="events") == 7


def test_no_counts_leave_everything_else() -> None:
    metrics = metrics_of(counts=KernelError("read the map iterator", 1))
    samples = scrape(metrics)
    assert value(samples, "scrape_errors_total", map="") == 1
    assert value(samples, "map_id", map="flows") == 42
    assert maps_of(samples, "map_entries") == set()
    assert value(scrape(metrics), "scrape_errors_total", map="") == 2


def test_no_status_is_no_failed_scrape() -> None:
    samples = scrape(metrics_of(RuntimeError("a bug")))
    assert value(samples, "scrape_errors_total", map="") == 1
    assert value(samples, "build_info", version=bpfkeeperd.__version__) == 1


@pytest.mark.parametrize("part", ["attachments", "drift", "reloads"])
def test_a_bad_part_leaves_the_others(part: str) -> None:
    bad: Any = (BROKEN,) if part == "attachments" else BROKEN
    samples = scrape(metrics_of(dataclasses.replace(STATUS, **{part: bad})))
    assert value(samples, "scrape_errors_total", map="") in (1, 2)
    assert value(samples, "map_entries", map="flows") == 25
    shown = {"attachments": "attachment_up", "drift": "drift", "reloads": "reloads_total"}
    for other, name in shown.items():
        assert bool(labels_of(samples, name)) == (other != part)


def test_errors_are_not_lost_between_threads() -> None:
    metrics = metrics_of(counts=RuntimeError("never"))
    threads = [
        threading.Thread(target=lambda: [metrics.render() for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(scrape(metrics), "scrape_errors_total", map="") == 81


# ---- beside a reload ----


def test_a_status_whose_map_is_gone_is_waited_for() -> None:
    """As when a reload made another map: the counts have it, the status comes a moment later."""
    former, next_one = Status(maps=(a_map("flows"),)), Status(maps=(a_map("flows", id=77),))
    asked = 0

    def status() -> Status:
        nonlocal asked
        asked += 1
        return former if asked < 4 else next_one

    metrics = Metrics(sources(status, lambda: {77: 5}))
    samples = scrape(metrics)
    assert value(samples, "map_id", map="flows") == 77
    assert value(samples, "map_entries", map="flows") == 5
    assert value(samples, "scrape_errors_total", map="flows") == 0
    assert asked == 4


def test_what_is_gone_is_waited_for_once() -> None:
    asked = 0

    def status() -> Status:
        nonlocal asked
        asked += 1
        return STATUS

    metrics = Metrics(sources(status, lambda: {43: 1}))
    assert value(scrape(metrics), "scrape_errors_total", map="flows") == 1
    assert asked > 10, "there was some patience"
    asked = 0
    for scrapes in (2, 3):
        samples = scrape(metrics)
        assert value(samples, "scrape_errors_total", map="flows") == scrapes
        assert value(samples, "map_entries", map="events") == 1
    assert asked == 2


def test_a_program_that_is_gone_is_an_error_of_all() -> None:
    program = ProgramStatus("o", "p", 1, 70, "0" * 16, "digest", "/nowhere")
    samples = scrape(metrics_of(Status(programs=(program,))))
    assert value(samples, "program_id", object="o", program="p") == 70
    assert value(samples, "scrape_errors_total", map="") == 1


PROGRAM = ProgramStatus("o", "p", 1, 70, "0" * 16, "digest", "/pins/p")
FIGURES = ProgramFigures(
    id=70,
    type=1,
    instructions=9,
    verified=12,
    run_count=0,
    run_time_ns=0,
    misses=0,
    load_time_ns=10**10,
    memory_bytes=0,
)


def test_a_status_whose_program_is_gone_is_waited_for() -> None:
    former = Status(programs=(dataclasses.replace(PROGRAM, path="/pins/former"),))
    asked = 0

    def status() -> Status:
        nonlocal asked
        asked += 1
        return former if asked < 4 else Status(programs=(PROGRAM,))

    given = dataclasses.replace(sources(status, dict), programs=lambda paths: {"/pins/p": FIGURES})
    samples = scrape(Metrics(given))
    assert value(samples, "program_verified_instructions", object="o", program="p") == 12
    assert value(samples, "scrape_errors_total", map="") == 0
    assert asked == 4


@pytest.mark.parametrize("up", [True, False])
def test_a_hook_that_another_program_serves_is_served_since_never(up: bool) -> None:
    attachment = AttachmentStatus("o", "p", "xdp", "eth0", up=up, prog_id=70, path="/")
    status = Status(programs=(PROGRAM,), attachments=(attachment,))
    given = dataclasses.replace(
        sources(lambda: status, dict), programs=lambda paths: {"/pins/p": FIGURES}
    )
    samples = scrape(Metrics(given))
    assert bool(labels_of(samples, "attachment_since_timestamp_seconds")) == up
    assert bool(labels_of(samples, "attachment_info")) == up


def test_a_program_type_that_nobody_knows_yet() -> None:
    samples = scrape(metrics_of(Status(programs=(dataclasses.replace(PROGRAM, type=999),))))
    (labels,) = labels_of(samples, "program_info")
    assert dict(labels)["type"] == "type 999"


def test_an_error_is_counted_once_however_often_it_is_tried() -> None:
    """As when there are no descriptors left: no map is counted, and no program read."""

    def refused() -> Survey:
        raise KernelError("make the map iterator", 24)

    status = Status(programs=(PROGRAM,))
    given = dataclasses.replace(sources(lambda: status, dict), survey=refused)
    assert value(scrape(Metrics(given)), "scrape_errors_total", map="") == 2


def test_programs_that_cannot_be_asked_for_are_one_error() -> None:
    asked = 0

    def refused(paths: object) -> Mapping[str, ProgramFigures]:
        nonlocal asked
        asked += 1
        raise MemoryError

    status = Status(programs=(PROGRAM, dataclasses.replace(PROGRAM, program="q", path="/pins/q")))
    given = dataclasses.replace(sources(lambda: status, dict), programs=refused)
    samples = scrape(Metrics(given))
    assert value(samples, "scrape_errors_total", map="") == 1
    assert value(samples, "program_statistics_enabled") == 0
    assert asked == 1, "another status would not help"


def test_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon after the boot of a machine that has no clock of its own. Small differences, which
    come of reading two clocks, are none of the time of boot."""
    status = Status(programs=(PROGRAM,))
    given = dataclasses.replace(
        sources(lambda: status, dict), programs=lambda paths: {"/pins/p": FIGURES}
    )
    ahead = 0.0
    monkeypatch.setattr(time, "time", lambda: time.clock_gettime(time.CLOCK_REALTIME) + ahead)
    metrics = Metrics(given)

    def loaded() -> float:
        found = scrape(metrics)
        return value(found, "program_loaded_timestamp_seconds", object="o", program="p") or 0

    before = loaded()
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert abs(before - boot - 10) < 1
    ahead = 0.3
    assert loaded() == before
    ahead = 5000.0
    assert 4999 < loaded() - before < 5001


def test_a_map_that_left_takes_its_errors_along() -> None:
    given = [Status(maps=(a_map("flows"), a_map("other", id=43)))]
    metrics = Metrics(sources(lambda: given[0], lambda: {43: 1}))
    assert value(scrape(metrics), "scrape_errors_total", map="flows") == 1
    given[0] = Status(maps=(a_map("other", id=43),))
    assert maps_of(scrape(metrics), "scrape_errors_total") == {"", "other"}
    given[0] = Status(maps=(a_map("flows", id=43),))
    assert value(scrape(metrics), "scrape_errors_total", map="flows") == 0, "it is a new one"


def test_the_text_of_a_status_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def counting_writes(*arguments: Any) -> StatusSeries:
        nonlocal written
        written += arguments[0] is STATUS
        return status_series(*arguments)

    monkeypatch.setattr("bpfkeeperd.metrics.status_series", counting_writes)
    metrics = metrics_of()
    for _ in range(3):
        metrics.render()
    assert written == 1


def test_content_type() -> None:
    assert metrics_of().render()[1] == "text/plain; version=0.0.4; charset=utf-8"


def test_every_family_has_help_that_ends_in_a_full_stop() -> None:
    lines = metrics_of().render()[0].decode().splitlines()
    helps = {line.split()[2]: line for line in lines if line.startswith("# HELP bpfkeeper_")}
    types = {line.split()[2] for line in lines if line.startswith("# TYPE bpfkeeper_")}
    assert set(helps) == types
    assert all(line.endswith(".") for line in helps.values())
    assert "bytes" in helps["bpfkeeper_map_entries"]


def test_promtool_has_nothing_to_say() -> None:
    text, _ = metrics_of().render()
    assert promtool("check", "metrics", text=text.decode()) == (0, "")
