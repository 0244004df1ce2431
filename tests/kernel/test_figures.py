"""Figures of single maps and programs, against what is known to be in them."""

import errno
import itertools
import os
import re
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.errors import KernelError
from bpfkeeperd.maptypes import BY_NAME
from bpfkeeperd.state import ProgramFigures
from tests.kernel.counted import create, create_outer, u32
from tests.kernel.test_counting_scans import connected_sockets
from tests.machine import fill_map, run_program

NO_PREALLOC, RDONLY, WRONLY = 1, 8, 16
SOCKET_FILTER = 1
RETURN_0 = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
LOOPBACK = 1
SLOTS = 3
"""Filled slots of the maps of pointers."""
NEIGHBOURS = 8
"""Keys that may be in the same buckets as the few at which a walk is held up."""


def a_key(name: str, number: int) -> bytes:
    return struct.pack("=II", 32 if name == "lpm_trie" else 0, number)


@pytest.mark.parametrize("batch", [True, False], ids=["batch", "next_key"])
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("hash", 0),
        ("hash", NO_PREALLOC),
        ("percpu_hash", 0),
        ("lru_hash", 0),
        ("lru_percpu_hash", 0),
        ("lpm_trie", NO_PREALLOC),
    ],
)
def test_entries(stack: ExitStack, name: str, flags: int, batch: bool) -> None:
    """More than the count remembers all keys of."""
    fd = create(stack, name, 8, 8, 20_000, flags)
    value = bytes(8 * (kernel.possible_cpus() if BY_NAME[name].per_cpu else 1))
    way = "batch" if batch else "next_key"
    assert kernel.count_entries(fd, batch=batch) == kernel.CountedEntries(0, way)
    wanted = 10_000 if name != "lpm_trie" else 6000
    keys = b"".join(a_key(name, number * 977) for number in range(wanted))
    fill_map(fd, keys, value * wanted, wanted)
    assert kernel.count_entries(fd, batch=batch) == kernel.CountedEntries(wanted, way)
    for number in range(100):
        kernel.map_delete(fd, a_key(name, number * 977))
    assert kernel.count_entries(fd, batch=batch).entries == wanted - 100


@pytest.mark.parametrize("max_entries", [1, 50])
def test_a_full_hash(stack: ExitStack, max_entries: int) -> None:
    fd = create(stack, "hash", 8, 8, max_entries)
    for number in range(max_entries):
        kernel.map_update(fd, a_key("hash", number), bytes(8))
    for batch in (True, False):
        assert kernel.count_entries(fd, batch=batch).entries == max_entries


def test_an_lru_map_that_evicted(stack: ExitStack) -> None:
    fd = create(stack, "lru_hash", 8, 8, 1000)
    for number in range(3000):
        kernel.map_update(fd, a_key("lru_hash", number), bytes(8))
    found = len(list(kernel.map_keys(fd, 8)))
    assert 0 < found <= 1000
    assert kernel.count_entries(fd).entries == found


def test_buckets_that_are_larger_than_the_buffer(stack: ExitStack) -> None:
    """An entry is more than is read at once, and buckets hold several."""
    fd = create(stack, "hash", 4, 300 << 10, 32)
    for number in range(32):
        kernel.map_update(fd, u32(number), bytes(300 << 10))
    assert kernel.count_entries(fd) == kernel.CountedEntries(32, "batch")


def _maps(stack: ExitStack, fd: int) -> list[bytes]:
    return [u32(create(stack, "hash", 4, 4, 1)) for _ in range(SLOTS)]


def _interfaces(stack: ExitStack, fd: int) -> list[bytes]:
    return [u32(LOOPBACK)] * SLOTS


def _programs(stack: ExitStack, fd: int) -> list[bytes]:
    program = kernel.prog_load(SOCKET_FILTER, "filter", RETURN_0)
    stack.callback(os.close, program)
    return [u32(program)] * SLOTS


def _queue_sizes(stack: ExitStack, fd: int) -> list[bytes]:
    return [u32(16)] * min(SLOTS, kernel.possible_cpus())


def _sockets(stack: ExitStack, fd: int) -> list[bytes]:
    size = kernel.map_info(fd).value_size
    return [number.to_bytes(size, "little") for number in connected_sockets(stack, SLOTS)]


@pytest.mark.parametrize(
    ("name", "value_size", "values"),
    [
        ("hash_of_maps", 4, _maps),
        ("array_of_maps", 4, _maps),
        ("devmap", 4, _interfaces),
        ("devmap_hash", 4, _interfaces),
        ("prog_array", 4, _programs),
        ("cpumap", 4, _queue_sizes),
        ("sockmap", 8, _sockets),
        ("sockhash", 4, _sockets),
        ("sockhash", 8, _sockets),
    ],
)
def test_maps_of_other_things(
    stack: ExitStack,
    name: str,
    value_size: int,
    values: Callable[[ExitStack, int], list[bytes]],
) -> None:
    if name.endswith("of_maps"):
        fd = create_outer(stack, name, 10, create(stack, "hash", 4, 4, 1))
    else:
        fd = create(stack, name, 4, value_size, 10 if name != "cpumap" else 2)
    assert kernel.count_entries(fd).entries == 0
    made = values(stack, fd)
    for number, value in enumerate(made):
        kernel.map_update(fd, u32(number), value)
    found = kernel.count_entries(fd)
    assert found.entries == len(made)
    assert found.way == ("batch" if name.endswith("of_maps") else "next_key")
    kernel.map_delete(fd, u32(1))
    assert kernel.count_entries(fd).entries == len(made) - 1


@pytest.mark.parametrize("name", ["queue", "stack", "ringbuf", "bloom_filter"])
def test_what_cannot_be_counted_so(stack: ExitStack, name: str) -> None:
    sizes = (0, 0, kernel.page_size()) if name == "ringbuf" else (0, 4, 4)
    fd = create(stack, name, *sizes)
    with pytest.raises(KernelError, match="cannot count the map's entries"):
        kernel.count_entries(fd)


@pytest.mark.parametrize("name", ["hash", "array"])
def test_descriptors_that_can_only_be_written(stack: ExitStack, name: str) -> None:
    fd = create(stack, name, 4, 4, 4, WRONLY)
    for batch in (True, False):
        with pytest.raises(KernelError) as caught:
            kernel.count_entries(fd, nonzero=name == "array", batch=batch)
        assert str(caught.value) == (
            "cannot count the map's entries: Operation not permitted (EPERM):"
            " it can only be written through this descriptor"
        )
    only_read = create(stack, name, 4, 4, 4, RDONLY)
    assert kernel.count_entries(only_read, nonzero=name == "array").entries == 0


@contextmanager
def deleting(fd: int, name: str, kept: int, most: int) -> Iterator[None]:
    """A process that deletes and adds keys all the while, but never one of the first ``kept``."""
    child = os.fork()
    if child == 0:
        try:
            numbers = range(kept, most)
            for number in itertools.cycle(numbers):
                kernel.map_delete(fd, a_key(name, number))
                kernel.map_update(fd, a_key(name, number), bytes(8))
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("name", "batch", "most"),
    [
        ("hash", True, 1000),
        ("hash", False, 40),
        ("hash", False, 6000),
        ("lpm_trie", True, 40),
        ("lpm_trie", False, 40),
    ],
)
def test_while_others_delete(stack: ExitStack, name: str, batch: bool, most: int) -> None:
    """A key that vanishes sends the kernel back to the first one, which is noticed."""
    kept = most // 2
    # With room for more keys than there are, one that is counted twice shows.
    fd = create(stack, name, 8, 8, 4 * most, NO_PREALLOC)
    keys = b"".join(a_key(name, number) for number in range(most))
    fill_map(fd, keys, bytes(8) * most, most)
    can_restart = not (name == "hash" and batch)
    # The key at which a walk stands can go and come back between two of its steps, when it is held
    # up for so long: then it is the first of its bucket, and those before it are counted again.
    twice = NEIGHBOURS if name == "hash" and not batch else 0
    restarts = counts = 0
    begun = time.monotonic()
    with deleting(fd, name, kept, most):
        while counts < 100 or time.monotonic() < begun + 0.2 or (can_restart and restarts < 3):
            assert time.monotonic() < begun + 60, f"{restarts} restarts in {counts} counts"
            found = kernel.count_entries(fd, batch=batch)
            assert kept <= found.entries <= most + twice
            restarts += found.restarts
            counts += 1
    assert can_restart or not restarts
    with suppress(KernelError):  # the process may have been killed in between
        for number in range(kept, most):
            kernel.map_update(fd, a_key(name, number), bytes(8))
    assert kernel.count_entries(fd, batch=batch).entries == most


def test_a_map_that_never_stands_still(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says it is smaller than it is stands for it."""
    fd = create(stack, "hash", 8, 8, 100)
    for number in range(100):
        kernel.map_update(fd, a_key("hash", number), bytes(8))
    info = kernel.map_info(fd)
    smaller = type(info)(**{n: getattr(info, n) for n in info.__slots__} | {"max_entries": 10})
    monkeypatch.setattr(kernel.figures, "map_info", lambda _: smaller)
    with pytest.raises(KernelError, match="keys are deleted faster than they can be walked"):
        kernel.count_entries(fd, batch=False)


def test_a_count_that_takes_too_long(stack: ExitStack) -> None:
    fd = create(stack, "hash", 8, 8, 10)
    with pytest.raises(KernelError) as caught:
        kernel.count_entries(fd, seconds=0)
    assert caught.value.errno == errno.ETIME
    stop = kernel.StopFlag()
    assert kernel.count_entries(fd, stop=stop).entries == 0
    stop.set()
    with pytest.raises(KernelError) as caught:
        kernel.count_entries(fd, stop=stop)
    assert caught.value.errno == errno.ECANCELED


@pytest.mark.parametrize("batch", [True, False], ids=["batch", "lookup"])
@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 9, 24, 61, 4099])
@pytest.mark.parametrize("name", ["array", "percpu_array"])
def test_slots_that_are_not_zero(stack: ExitStack, name: str, size: int, batch: bool) -> None:
    """One byte that is set in the first or the last place of a value, of any CPU."""
    slots = 300
    fd = create(stack, name, 4, size, slots)
    cpus = kernel.possible_cpus() if name == "percpu_array" else 1
    stride = -(-size // 8) * 8 if name == "percpu_array" else size

    def count() -> int:
        found = kernel.count_entries(fd, nonzero=True, batch=batch)
        assert found.way == "nonzero"
        return found.entries

    assert count() == 0
    places = [cpu * stride + at for cpu in range(cpus) for at in {0, size // 2, size - 1}]
    for number, place in enumerate(places):
        value = bytearray(stride * cpus)
        value[place] = 0x80
        kernel.map_update(fd, u32(number * 299 // len(places)), bytes(value))
    assert count() == len(places)
    kernel.map_update(fd, u32(0), bytes(stride * cpus))
    assert count() == len(places) - 1


def test_what_rounds_a_value_up_does_not_count(stack: ExitStack) -> None:
    """The kernel keeps whatever a writer left there."""
    fd = create(stack, "percpu_array", 4, 5, 10)
    kernel.map_update(fd, u32(3), (bytes(5) + b"abc") * kernel.possible_cpus())
    size = 8 * kernel.possible_cpus()
    assert kernel.map_lookup(fd, u32(3), size) == (bytes(5) + b"abc") * kernel.possible_cpus()
    assert kernel.count_entries(fd, nonzero=True).entries == 0


def test_only_arrays_have_slots_that_are_zero(stack: ExitStack) -> None:
    fd = create(stack, "hash", 4, 4, 10)
    with pytest.raises(KernelError, match="the map is no array"):
        kernel.count_entries(fd, nonzero=True)


def fdinfo(fd: int, name: str) -> int:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(re.findall(rf"^{name}:\s*(\d+)$", text, re.MULTILINE)[0])


def pinned(bpffs: Path, name: str, fd: int) -> str:
    path = str(bpffs / name)
    kernel.pin(fd, path)
    return path


def test_memory_of_maps(stack: ExitStack, bpffs: Path) -> None:
    wanted: list[tuple[int, int] | int] = []
    paths = []
    for number, (name, size) in enumerate(
        [("hash", 10), ("hash", 10_000), ("array", 10_000), ("percpu_hash", 100), ("lpm_trie", 9)]
    ):
        fd = create(stack, name, 8 if name[0] != "a" else 4, 8, size, int(name == "lpm_trie"))
        paths.append(pinned(bpffs, f"m{number}", fd))
        wanted.append((kernel.map_info(fd).id, fdinfo(fd, "memlock")))
    program = kernel.prog_load(SOCKET_FILTER, "filter", RETURN_0)
    stack.callback(os.close, program)
    paths += [pinned(bpffs, "p", program), str(bpffs / "none"), str(bpffs)]
    before = set(os.listdir("/proc/self/fd"))
    found = kernel.maps_memory(paths)
    assert set(os.listdir("/proc/self/fd")) == before
    assert found == [*wanted, errno.EINVAL, errno.ENOENT, errno.EACCES]
    assert len({memory for memory in found if memory}) > 3
    assert kernel.maps_memory([]) == []


def test_programs(stack: ExitStack, bpffs: Path) -> None:
    begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    one = kernel.prog_load(SOCKET_FILTER, "filter", RETURN_0)
    stack.callback(os.close, one)
    longer = struct.pack("=BBhi", 0xB7, 0, 0, 0) * 8 + RETURN_0
    two = kernel.prog_load(SOCKET_FILTER, "longer", longer)
    stack.callback(os.close, two)
    ended = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    map_fd = create(stack, "hash", 4, 4, 1)
    paths = [
        pinned(bpffs, "one", one),
        pinned(bpffs, "two", two),
        pinned(bpffs, "map", map_fd),
        str(bpffs / "none"),
    ]
    before = set(os.listdir("/proc/self/fd"))
    first, second, *others = kernel.program_figures(paths)
    assert others == [errno.EINVAL, errno.ENOENT]
    assert isinstance(first, ProgramFigures) and isinstance(second, ProgramFigures)
    assert (first.id, first.type) == (kernel.program_info(one).id, SOCKET_FILTER)
    assert (first.instructions, second.instructions) == (2, 10)
    assert (first.verified, second.verified) == (2, 10)
    assert begun <= first.load_time_ns <= second.load_time_ns <= ended
    assert first.memory_bytes == 0
    assert first == kernel.program_stats(one)
    first, *_ = kernel.program_figures(paths, memory=True)
    assert isinstance(first, ProgramFigures)
    assert first.memory_bytes == fdinfo(one, "memlock") > 0
    assert set(os.listdir("/proc/self/fd")) == before


def test_runs_are_counted_while_that_is_asked_for(stack: ExitStack, bpffs: Path) -> None:
    program = kernel.prog_load(SOCKET_FILTER, "filter", RETURN_0)
    stack.callback(os.close, program)
    path = pinned(bpffs, "p", program)

    def figures() -> tuple[int, int]:
        (found,) = kernel.program_figures([path])
        assert isinstance(found, ProgramFigures)
        return found.run_count, found.run_time_ns

    switch = Path("/proc/sys/kernel/bpf_stats_enabled").read_text().strip()
    assert kernel.statistics_enabled() == (switch != "0")
    with kernel.counting_runs():
        before = figures()
        for _ in range(7):
            run_program(program, bytes(64))
        after = figures()
        # Whoever has runs counted for a while cannot be seen by others.
        assert kernel.statistics_enabled() == (switch != "0")
    assert after[0] - before[0] == 7
    assert after[1] > before[1]


def test_a_socket_that_closes(stack: ExitStack) -> None:
    """Of a map that is walked, with keys that go by themselves."""
    fd = create(stack, "sockhash", 4, 8, 10)
    with closing(ExitStack()) as others:
        for number, value in enumerate(_sockets(others, fd)):
            kernel.map_update(fd, u32(number), value)
        assert kernel.count_entries(fd).entries == SLOTS
    assert kernel.count_entries(fd).entries == 0
