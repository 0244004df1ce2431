"""What a daemon measures with, on the real kernel, also where it may not or cannot measure all."""

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bpfkeeperd import kernel
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.entries import Manifest
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.instruments import Instruments
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import Status
from tests.machine import counts_hashes_at_once
from tests.scenario import World

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 0, 1, 2, 3
CAPABILITY_VERSION_3 = 0x20080522

MAPS = """
maps:
  plain: {type: hash, key: u32, value: u64, max_entries: 10, entries: [{key: 1, value: 1}]}
  growing: {type: hash, key: u32, value: u64, max_entries: 10, flags: [no_prealloc]}
  queue: {type: queue, value: u32, max_entries: 4, entries: [{value: 1}]}
  slots: {type: array, key: u32, value: u64, max_entries: 9, count: nonzero, entries: [*]}
  own: {type: array, key: u32, value: u64, max_entries: 3}
""".replace("*", "{key: 2, value: 7}")

Samples = dict[str, float]


def samples(instruments: Instruments) -> Samples:
    """``entries plain`` and so on, of what has a label map; ``scrape_errors `` of all."""
    text = instruments.metrics.render()[0].decode()
    return {
        f"{sample.name.removeprefix('bpfkeeper_').removeprefix('map_')} {sample.labels['map']}": (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "map" in sample.labels and "reason" not in sample.labels
    }


def ways(instruments: Instruments) -> dict[str, str]:
    """How each map is counted."""
    text = instruments.metrics.render()[0].decode()
    return {
        sample.labels["map"]: sample.labels["counted_by"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "bpfkeeper_map_info"
    }


@contextmanager
def measuring(world: World, text: str = MAPS) -> Iterator[tuple[Keeper, Instruments]]:
    world.write(text)
    with world.keeper() as keeper:
        world.reload(keeper)
        with Instruments(lambda: keeper.status) as instruments:
            instruments.follow(keeper.manifest)
            instruments.wait(20)
            yield keeper, instruments


@pytest.fixture
def in_scrapes() -> bool:
    """Whether entries of hashes are counted there; else from time to time."""
    return counts_hashes_at_once()


def test_all_that_can_be_had(world: World, in_scrapes: bool) -> None:
    with measuring(world) as (_, instruments):
        found = samples(instruments)
        assert ways(instruments) == {
            "plain": "kfunc" if in_scrapes else "batch",
            "growing": "kfunc" if in_scrapes else "batch",
            "queue": "field",
            "slots": "nonzero",
            "own": "",
        }
    assert [found[f"entries {name}"] for name in ("plain", "growing", "queue", "slots")] == [
        *(1, 0, 1, 1)
    ]
    assert ("count_age_seconds plain" in found) is not in_scrapes
    assert "entries own" not in found and found["count_age_seconds slots"] < 20
    assert all(found[f"memory_bytes {name}"] > 0 for name in ("plain", "slots", "own"))
    assert not any(value for name, value in found.items() if name.startswith("scrape_errors"))


def test_a_kernel_that_takes_no_counting_program(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps are counted one by one, from time to time; those that cannot be are left out."""

    def refused() -> MapCounter:
        raise KeeperError("cannot count map entries: no program is taken")

    monkeypatch.setattr(MapCounter, "open", refused)
    with measuring(world) as (_, instruments):
        found = samples(instruments)
        assert ways(instruments) == {
            "plain": "batch",
            "growing": "batch",
            "queue": "",
            "slots": "nonzero",
            "own": "",
        }
        assert [found[f"entries {name}"] for name in ("plain", "growing", "slots")] == [1, 0, 1]
        assert found["fill_ratio plain"] == 0.1 and found["count_age_seconds plain"] < 20
        assert not any(value for name, value in found.items() if name.startswith("scrape_errors"))
        text = instruments.metrics.render()[0].decode()
        assert "bpfkeeper_kernel_maps" not in text, "nobody counted them"


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities(*dropped: int) -> None:
    """Of this thread, and those that it makes."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Header(CAPABILITY_VERSION_3, 0)
    words = (ctypes.c_uint32 * 6)()
    assert libc.capget(ctypes.byref(header), words) == 0
    for number in dropped:
        words[3 * (number // 32)] &= ~(1 << number % 32)
    assert libc.capset(ctypes.byref(header), words) == 0


def in_a_thread(run: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def caught() -> None:
        try:
            run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=caught)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def test_one_map_that_cannot_be_read_is_one_error(world: World, in_scrapes: bool) -> None:
    """Its pin belongs to somebody else, and the daemon may not pass over that."""
    world.write(MAPS)
    with world.keeper() as keeper:
        world.reload(keeper)
        os.chown(world.pins / "growing", 12345, 12345)

        def measured() -> None:
            drop_capabilities(CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)
            with Instruments(lambda: keeper.status) as instruments:
                instruments.follow(keeper.manifest)
                instruments.wait(20)
                for scrapes in (1, 2):
                    found = samples(instruments)
                    errors = {
                        name: value
                        for name, value in found.items()
                        if name.startswith("scrape_errors")
                    }
                    assert {name for name, value in errors.items() if value} == {
                        "scrape_errors_total growing"
                    }
                    assert errors["scrape_errors_total growing"] == scrapes
                    # Going through a map needs a right to its pin; counting at once does not.
                    assert found.get("entries growing") == (0 if in_scrapes else None)
                    assert "memory_bytes growing" not in found
                    assert found["memory_bytes plain"] > 0 and found["entries slots"] == 1

        in_a_thread(measured)


def test_a_map_is_gone_when_the_keeper_lets_go_of_it(world: World) -> None:
    """Nothing that measures keeps a map alive."""
    with measuring(world) as (keeper, instruments):
        map_id = world.map_id("slots") or 0
        world.write("maps: {own: {type: array, key: u32, value: u64, max_entries: 3}}")
        world.reload(keeper)
        instruments.follow(keeper.manifest)
        (world.pins / "slots").unlink()

        def gone() -> bool:
            instruments.metrics.render()
            fd = kernel.map_by_id(map_id)
            if fd is not None:
                os.close(fd)
            return fd is None

        world.wait(gone)
        assert set(ways(instruments)) == {"own"}


def test_what_is_waited_for(world: World) -> None:
    """All there is of a program, also where there is no map."""
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper:
        world.reload(keeper)
        status = replace(keeper.status, maps=())
        with Instruments(lambda: status) as instruments:
            instruments.follow(keeper.manifest)
            instruments.wait(20)
            assert "\nbpfkeeper_program_memory_bytes{" in instruments.metrics.render()[0].decode()


def test_what_the_machine_gave_out(world: World) -> None:
    """A map more is one more, and an ID more or some; scrapes take none.

    Nothing is said of IDs before it is known how they can be counted.
    """
    with measuring(world) as (_, instruments):
        text = instruments.metrics.render()[0].decode()
        assert "bpfkeeper_kernel_maps " in text and "bpfkeeper_kernel_map_id" not in text
        instruments.open_allocator()

        def machine() -> tuple[float, float]:
            text = instruments.metrics.render()[0].decode()
            found = {
                sample.name: sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
            limit = found["bpfkeeper_kernel_map_id_limit"]
            given = found["bpfkeeper_kernel_map_ids_allocated_total"]
            assert limit == 2**31 - 2 and found["bpfkeeper_kernel_map_id_headroom"] == limit - given
            return found["bpfkeeper_kernel_maps"], given

        with kernel.holding(kernel.map_create(1, "one", 4, 4, 1)) as fd:
            map_id = kernel.map_info(fd).id
            maps, given = machine()
            assert maps >= 6 and given >= map_id


def test_whoever_has_runs_counted_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in (True, False):
        monkeypatch.setattr(kernel, "statistics_enabled", lambda now=switch: now)
        with Instruments(Status) as instruments:
            lines = instruments.metrics.render()[0].decode().splitlines()
        assert f"bpfkeeper_program_statistics_enabled {switch:d}" in lines


def test_files_that_are_not_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon goes on without what they are for."""
    monkeypatch.setattr("bpfkeeperd.iterators.OBJECTS", world.directory)
    with Instruments(Status) as instruments:
        instruments.follow(Manifest(file="", observe_most=5))
        instruments.open_allocator()
        assert b"build_info" in instruments.metrics.render()[0]


@pytest.mark.parametrize("told", [True, False])
def test_how_far_map_ids_have_come_is_exact_when_the_allocator_was_found(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Not every kernel names it: the program is the real one, what it reads is given here."""
    monkeypatch.setattr("bpfkeeperd.mapids._next_id", lambda link_fd: 2**30 + 1 if told else None)

    def lines() -> list[str]:
        return instruments.metrics.render()[0].decode().splitlines()

    with Instruments(Status) as instruments:
        assert not any("kernel_map_id" in line for line in lines()), "not known yet"
        instruments.open_allocator()
        assert f"bpfkeeper_kernel_map_ids_exact {told:d}" in lines()
        shown = f"bpfkeeper_kernel_map_ids_allocated_total {2**30}"
        assert (shown in lines()) == told


def test_what_cannot_be_opened_is_said_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bpfkeeperd.othermaps.OBJECT_NAME", "nothing")
    monkeypatch.setattr(kernel, "counting_runs", refusing)
    with measuring(world, f"metrics: {{observe: all, program_statistics: true}}\n{MAPS}") as found:
        keeper, instruments = found
        for _ in range(3):
            instruments.follow(keeper.manifest)
        assert samples(instruments)["scrape_errors_total "] == 0
    assert caplog.text.count("maps of others are not shown") == 1
    assert caplog.text.count("runs of programs are not counted") == 1


def refusing() -> AbstractContextManager[None]:
    raise KernelError("have the kernel count runs of programs", errno.EPERM)


def test_a_scrape_does_not_wait_for_a_reload_that_is_over(world: World) -> None:
    """What is gone of a status, without another one in sight, costs one scrape some patience."""
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper:
        world.reload(keeper)
        with Instruments(lambda: keeper.status) as instruments:
            instruments.follow(keeper.manifest)
            (program,) = keeper.status.programs
            os.unlink(program.path)
            found = [samples(instruments)["scrape_errors_total "] for _ in range(3)]
            assert found == [1, 2, 3]
            began = time.monotonic()
            for _ in range(100):
                instruments.metrics.render()
            assert time.monotonic() - began < 100 * 0.25, "it was patient each time"
