"""The census of maps that no scrape can wait for, against the kernel's own answers."""

import errno
import itertools
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from bpfkeeperd import census, kernel
from bpfkeeperd.census import Census, CensusMap, CensusResult
from bpfkeeperd.errors import KernelError
from bpfkeeperd.mapmemory import memory_changes
from bpfkeeperd.maptypes import BY_NAME
from tests.kernel.counted import create, create_outer, u32
from tests.kernel.test_counting_scans import connected_sockets
from tests.machine import fill_map

NO_PREALLOC, WRONLY = 1, 16
SOON = 10.0
"""Seconds in which the thread has certainly come round; it takes some milliseconds."""

Count = Literal["", "entries", "nonzero"]


@pytest.fixture
def running() -> Iterator[Census]:
    one = Census()
    yield one
    one.close()
    assert "census" not in [thread.name for thread in threading.enumerate()]


def until(met: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not met():
        assert time.monotonic() < deadline, f"it never came that {what}"
        time.sleep(0.002)


def entry(fd: int, path: Path, count: Count = "entries") -> CensusMap:
    info = kernel.map_info(fd)
    kind, most, flags = info.type, info.max_entries, info.flags
    return CensusMap(info.id, str(path), kind, most, flags, count, path.name)


def kept(
    stack: ExitStack, path: Path, name: str = "hash", size: int = 100, flags: int = 0
) -> tuple[int, CensusMap]:
    """A pinned map whose values have 8 bytes, and its descriptor."""
    fd = create(stack, name, 4, 8, size, flags)
    kernel.pin(fd, str(path))
    count: Count = "nonzero" if name == "array" else "entries"
    return fd, entry(fd, path, count)


def filled(fd: int, entries: int) -> None:
    keys = struct.pack(f"={entries}I", *range(entries))
    fill_map(fd, keys, bytes([1]) * 8 * entries, entries)


def memory(fd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(re.findall(r"^memlock:\s*(\d+)$", text, re.MULTILINE)[0])


def result(running: Census, one: CensusMap) -> CensusResult:
    return running.results.get(one.id, CensusResult())


def test_entries_slots_and_memory(running: Census, stack: ExitStack, bpffs: Path) -> None:
    table, table_map = kept(stack, bpffs / "table")
    slots, slots_map = kept(stack, bpffs / "slots", "array")
    plain, plain_map = kept(stack, bpffs / "plain", "lru_hash")
    plain_map = entry(plain, bpffs / "plain", "")
    filled(table, 30)
    filled(slots, 7)
    filled(plain, 3)
    before = time.monotonic()
    running.follow([table_map, slots_map, plain_map])
    until(lambda: all(result(running, one).at for one in (table_map, slots_map)), "they count")
    found = result(running, table_map)
    assert (found.entries, found.way, found.error) == (30, "batch", "")
    assert before < (found.at or 0) < time.monotonic()
    assert found.memory_bytes == memory(table)
    found = result(running, slots_map)
    assert (found.entries, found.way, found.memory_bytes) == (7, "nonzero", memory(slots))
    assert result(running, plain_map) == CensusResult(memory_bytes=memory(plain))


def test_it_goes_round(
    running: Census, stack: ExitStack, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "INTERVAL_SECONDS", 0.02)
    fd, one = kept(stack, bpffs / "m", flags=NO_PREALLOC)
    running.follow([one])
    for entries in (1, 20, 90):
        filled(fd, entries)
        until(lambda wanted=entries: result(running, one).entries == wanted, f"{entries} are")  # type: ignore[misc]
        until(lambda: result(running, one).memory_bytes == memory(fd), "its memory is told")


def test_no_map_is_counted_again_soon(running: Census, stack: ExitStack, bpffs: Path) -> None:
    fd, one = kept(stack, bpffs / "m")
    running.follow([one])
    until(lambda: result(running, one).entries == 0, "it is counted")
    first = result(running, one)
    _, other = kept(stack, bpffs / "other")
    filled(fd, 5)
    running.follow([one, other])
    until(lambda: result(running, other).entries == 0, "the other is counted")
    assert result(running, one) is first


def test_another_count_is_asked_for(running: Census, stack: ExitStack, bpffs: Path) -> None:
    fd, one = kept(stack, bpffs / "slots", "array")
    filled(fd, 5)
    running.follow([entry(fd, bpffs / "slots", "")])
    until(lambda: result(running, one).memory_bytes is not None, "its memory is read")
    assert result(running, one).entries is None
    running.follow([one])
    until(lambda: result(running, one).entries == 5, "it is counted")


def test_small_maps_come_first(
    running: Census, stack: ExitStack, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def noted(one: CensusMap, *more: object) -> None:
        order.append(one.max_entries)

    monkeypatch.setattr(census, "_counted", noted)
    sizes = [500, 3, 40_000, 20]
    running.follow([kept(stack, bpffs / f"m{size}", size=size)[1] for size in sizes])
    until(lambda: len(order) == len(sizes), "all were counted")
    assert order == sorted(sizes)


def test_maps_that_left(running: Census, stack: ExitStack, bpffs: Path) -> None:
    _, one = kept(stack, bpffs / "one")
    _, other = kept(stack, bpffs / "other")
    running.follow([one, other])
    until(lambda: len(running.results) == 2, "both are known")
    before = running.results
    running.follow([other])
    assert set(running.results) == {other.id}
    assert set(before) == {one.id, other.id}, "what was handed out does not change"


def test_a_pin_that_leads_elsewhere(
    running: Census, stack: ExitStack, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quietly, as if nothing had been asked: the map has its former figures."""
    monkeypatch.setattr(census, "INTERVAL_SECONDS", 0.02)
    former, one = kept(stack, bpffs / "m")
    filled(former, 4)
    running.follow([one])
    until(lambda: result(running, one).entries == 4, "it is counted")
    (bpffs / "m").unlink()
    filled(former, 50)
    another, _ = kept(stack, bpffs / "m")
    filled(another, 9)
    at = result(running, one).at
    _, other = kept(stack, bpffs / "other")
    running.follow([one, other])
    until(lambda: bool(result(running, other).at), "another is counted")
    time.sleep(0.1)
    assert set(running.results) == {one.id, other.id}
    found = result(running, one)
    assert (found.entries, found.at, found.error) == (4, at, "")
    (bpffs / "m").unlink()
    time.sleep(0.1)
    assert (result(running, one).entries, result(running, one).error) == (4, "")


def test_a_pin_that_led_elsewhere_from_the_start(
    running: Census, stack: ExitStack, bpffs: Path
) -> None:
    _, one = kept(stack, bpffs / "one")
    _, other = kept(stack, bpffs / "other")
    running.follow([replace(one, id=other.id + 1), other])
    until(lambda: result(running, other).entries == 0, "the other is counted")
    assert set(running.results) == {other.id}


def test_others_are_followed_during_a_count(
    running: Census, stack: ExitStack, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came of it is not published."""
    _, one = kept(stack, bpffs / "one")
    _, other = kept(stack, bpffs / "other")
    counted = list[int]()

    def changing(fd: int, **options: Any) -> kernel.CountedEntries:
        counted.append(kernel.map_info(fd).id)
        running.follow([other])
        return kernel.CountedEntries(1, "batch")

    monkeypatch.setattr(kernel, "count_entries", changing)
    running.follow([one])
    until(lambda: result(running, other).entries == 1, "the other is counted")
    assert counted == [one.id, other.id]
    assert set(running.results) == {other.id}


def test_it_keeps_no_map_alive(
    running: Census, stack: ExitStack, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "INTERVAL_SECONDS", 0.005)
    with ExitStack() as short:
        fd, one = kept(short, bpffs / "m", size=1000)
        filled(fd, 1000)
        running.follow([one])
        until(lambda: result(running, one).entries == 1000, "it is counted")
    (bpffs / "m").unlink()
    # No map is opened by its ID here: that would keep it alive itself.
    until(lambda: not is_there(one.id), "the kernel frees it")


def is_there(map_id: int) -> bool:
    fd = kernel.map_by_id(map_id)
    if fd is not None:
        os.close(fd)
    return fd is not None


def test_errors_of_one_map(
    running: Census, stack: ExitStack, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "COUNT_SECONDS_MAX", 0)
    fd, wrong = kept(stack, bpffs / "wrong")
    _, one = kept(stack, bpffs / "one", size=200)
    one = replace(one, count="")
    running.follow([wrong, one])
    until(lambda: len(running.results) == 2 and bool(result(running, wrong).error), "both are")
    assert result(running, one).error == ""
    assert result(running, wrong) == CensusResult(
        memory_bytes=memory(fd),
        error="map wrong: cannot count the map's entries: Timer expired (ETIME):"
        " it has too many entries for the time there is",
    )


@pytest.mark.parametrize(
    ("name", "key_size", "value_size"),
    [("queue", 0, 8), ("bloom_filter", 0, 8), ("xskmap", 4, 4), ("sockmap", 4, 4)],
)
def test_maps_whose_entries_nobody_can_list(
    running: Census, stack: ExitStack, bpffs: Path, name: str, key_size: int, value_size: int
) -> None:
    """That is no error."""
    fd = create(stack, name, key_size, value_size, 5)
    kernel.pin(fd, str(bpffs / "m"))
    one = entry(fd, bpffs / "m")
    running.follow([one])
    until(lambda: bool(result(running, one).uncounted), "it is said")
    assert result(running, one) == CensusResult(
        memory_bytes=memory(fd), uncounted="the kernel lists no entries of maps like this one"
    )


def test_a_map_made_to_be_written_by_its_maker(
    running: Census, stack: ExitStack, bpffs: Path
) -> None:
    """The flag is of the descriptor that its maker got: others can read the map."""
    fd, one = kept(stack, bpffs / "m", flags=WRONLY)
    filled(fd, 3)
    running.follow([one])
    until(lambda: result(running, one).entries == 3, "it is counted")


def test_a_map_that_is_too_large(
    running: Census, stack: ExitStack, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "COUNTED_ENTRIES_MAX", 99)
    _, one = kept(stack, bpffs / "m")
    running.follow([one])
    until(lambda: bool(result(running, one).uncounted), "it is said")
    found = result(running, one)
    assert (found.entries, found.error) == (None, "")
    assert found.uncounted == "max_entries is above 99: a count costs time for each of them"
    assert found.memory_bytes


def test_work_is_followed_by_rest(
    running: Census, stack: ExitStack, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own account: whatever was worked, 49 times as long was waited, or longer where the
    machine is busy."""
    monkeypatch.setattr(census, "INTERVAL_SECONDS", 0.001)
    fd, one = kept(stack, bpffs / "m", size=20_000)
    filled(fd, 20_000)
    running.follow([one])
    until(lambda: running.rested_seconds > 0.5, "it worked and rested")
    running.close()
    done = running.worked_seconds - running.unrested_seconds
    assert 0 < done <= running.rested_seconds / 49 * 1.001


def test_it_stops_in_the_middle_of_a_count(
    running: Census, stack: ExitStack, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, one = kept(stack, bpffs / "m", size=1_000_000)
    filled(fd, 500_000)
    begun, ended_with = threading.Event(), list[str]()
    count_entries = kernel.count_entries

    def announced(*arguments: Any, **options: Any) -> kernel.CountedEntries:
        begun.set()
        try:
            return count_entries(*arguments, **options)
        except KernelError as error:
            ended_with.append(errno.errorcode[error.errno])
            raise

    monkeypatch.setattr(kernel, "count_entries", announced)
    running.follow([one])
    assert begun.wait(SOON)
    running.close()
    assert ended_with == ["ECANCELED"]
    assert result(running, one).at is None


def test_nothing_to_do_is_no_thread(stack: ExitStack, bpffs: Path) -> None:
    running = Census()
    running.follow([])
    running.follow_programs([])
    assert "census" not in [thread.name for thread in threading.enumerate()]
    running.close()
    running.close()
    running.follow([kept(stack, bpffs / "m")[1]])
    assert "census" not in [thread.name for thread in threading.enumerate()]


RETURN_0 = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)


def test_memory_of_programs(running: Census, stack: ExitStack, bpffs: Path) -> None:
    wanted = {}
    paths = [str(bpffs / "none")]
    for number in range(census.CHUNK + 3):
        fd = kernel.prog_load(1, "filter", RETURN_0)
        stack.callback(os.close, fd)
        paths.append(str(bpffs / f"p{number}"))
        kernel.pin(fd, paths[-1])
        wanted[kernel.program_info(fd).id] = memory(fd)
    running.follow_programs(paths)
    until(lambda: running.program_memory == wanted, "all are known")
    running.follow_programs(paths[:3])
    first = dict(itertools.islice(wanted.items(), 2))
    until(lambda: running.program_memory == first, "two are left")


GROWING = [
    ("hash", NO_PREALLOC, 8),
    ("percpu_hash", NO_PREALLOC, 8),
    ("lpm_trie", NO_PREALLOC, 8),
    ("devmap", 0, 4),
    ("devmap_hash", 0, 4),
    ("sockhash", 0, 4),
]
CONSTANT = [
    ("hash", 0, 8),
    ("percpu_hash", 0, 8),
    ("lru_hash", 0, 8),
    ("array", 0, 8),
    ("percpu_array", 0, 8),
    ("cpumap", 0, 4),
    ("prog_array", 0, 4),
    ("array_of_maps", 0, 4),
    ("hash_of_maps", 0, 4),
    ("sockmap", 0, 4),
]


@pytest.fixture(scope="module")
def accounts_what_there_is() -> bool:
    """Whether the kernel tells the memory that a map takes, not that of a full one."""
    entries = 1 << 20
    fd = kernel.map_create(BY_NAME["lpm_trie"].number, "empty", 8, 8, entries, flags=NO_PREALLOC)
    with kernel.holding(fd):
        return memory(fd) < entries


def test_a_map_whose_memory_the_kernel_does_not_tell(
    running: Census, stack: ExitStack, bpffs: Path
) -> None:
    """None, and not 0: of ring buffers some kernels tell that."""
    fd = create(stack, "ringbuf", 0, 0, 4096)
    path = bpffs / "ringbuf"
    kernel.pin(fd, str(path))
    other, one = kept(stack, bpffs / "other")
    ringbuf = entry(fd, path, "")
    running.follow([ringbuf, one])
    until(lambda: result(running, one).memory_bytes == memory(other), "its memory is told")
    assert result(running, ringbuf) == CensusResult(memory_bytes=memory(fd) or None)


@pytest.mark.parametrize(
    ("name", "flags", "value_size", "grows"),
    [*((*one, True) for one in GROWING), *((*one, False) for one in CONSTANT)],
)
def test_whose_memory_depends_on_what_is_in_it(
    stack: ExitStack,
    accounts_what_there_is: bool,
    name: str,
    flags: int,
    value_size: int,
    grows: bool,
) -> None:
    known = BY_NAME[name]
    inner = create(stack, "array", 4, 4, 1)
    if known.outer:
        fd = create_outer(stack, name, 2, inner)
    else:
        fd = create(stack, name, 8 if name == "lpm_trie" else 4, value_size, 2, flags)
    before = memory(fd)
    value = u32(1)
    if name.startswith("sock"):
        value = u32(*connected_sockets(stack, 1))
    elif known.outer:
        value = u32(inner)
    elif name == "prog_array":
        value = u32(kernel.prog_load(1, "filter", RETURN_0))
        stack.callback(os.close, int.from_bytes(value, sys.byteorder))
    values = value.ljust(value_size, b"\0") * (kernel.possible_cpus() if known.per_cpu else 1)
    key = struct.pack("=II", 32, 1) if name == "lpm_trie" else u32(1)
    kernel.map_update(fd, key, values)
    assert memory_changes(known.number, flags) is grows
    assert (memory(fd) != before) is (grows and accounts_what_there_is)
