"""Counts while two threads of another process change the map, each on a CPU of its own: never below
nothing, never above what the map holds, and exact when they have stopped."""

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.counting import PROGRAMS, MapCounter
from bpfkeeperd.errors import KeeperError
from tests.conftest import BuildObject
from tests.kernel.counted import create, create_outer, storage, u32
from tests.kernel.test_counting_scans import processes_of_own, sockets_of_own
from tests.machine import run_program

READS = 300
SECONDS = 0.25
"""For so many and so long at least the counts are read while the map changes."""
NO_PREALLOC, NO_COMMON_LRU = 1, 2
RECORD = 64
"""Bytes that a record of tests/bpf/filler.bpf.c takes."""


@dataclass(frozen=True, slots=True)
class Hammer:
    """tests/kernel/hammer.c, compiled."""

    program: Path

    def start(
        self, *arguments: object, fds: tuple[int, ...], least: int = 1000
    ) -> "subprocess.Popen[bytes]":
        """Starts a process that writes, and takes away, so often at least."""
        return subprocess.Popen(
            [self.program, str(least), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=fds,
        )


@dataclass(frozen=True, slots=True)
class Done:
    """What the threads did, together."""

    written: int
    taken: int
    refused: int


@pytest.fixture(scope="module")
def hammer(tmp_path_factory: pytest.TempPathFactory) -> Hammer:
    program = tmp_path_factory.mktemp("hammer") / "hammer"
    source = Path(__file__).parent / "hammer.c"
    command = ["gcc", "-O2", "-Wall", "-Werror", "-pthread", "-o", str(program), str(source)]
    subprocess.run(command, check=True)
    return Hammer(program)


@pytest.fixture(scope="module")
def counters() -> Iterator[list[MapCounter]]:
    """The best for a kernel that is locked down and for others; they take turns."""
    with ExitStack() as opened:
        found = []
        for locked in (False, True):
            programs = [
                one for one in PROGRAMS if (one.object_name == "map_counts_lockdown") == locked
            ]
            try:
                found.append(opened.enter_context(MapCounter.open(programs)))
            except KeeperError:
                continue  # tests/kernel/test_counting.py says when that is right
        assert found
        yield found


def watched(
    counters: list[MapCounter], fd: int, most: int, process: "subprocess.Popen[bytes]"
) -> tuple[Done, list[int]]:
    """Reads while the process changes the map; what that did, and the counts at rest."""
    info = kernel.map_info(fd)
    taking = [counter for counter in counters if counter.counted_by(info.type)]
    with process:
        seen = list[int]()
        started = time.monotonic()
        try:
            while len(seen) < READS or time.monotonic() < started + SECONDS:
                assert process.poll() is None, "the writers ended"
                seen += [counter.counts()[info.id] for counter in taking or counters[:0]]
                if not taking:
                    break
        finally:
            out, _ = process.communicate()
    assert process.returncode == 0
    if not taking:
        pytest.skip(f"this kernel's counters do not count type {info.type}")
    assert not [number for number in seen if not 0 <= number <= most]
    done = Done(*map(int, out.split()))
    return done, [counter.counts()[info.id] for counter in taking]


@dataclass(frozen=True, slots=True)
class Table:
    """A map with keys, and what is done to it."""

    name: str
    type: str
    max_entries: int
    keys: int
    flags: int = 0
    writes: tuple[int, int] = (50, 50)
    """Per cent of what each thread does."""
    key_size: int = 8
    value_size: int = 8
    full: bool = False
    """Some writes find no room."""

    def __str__(self) -> str:
        return self.name


TABLES = [
    Table("hash", "hash", 1000, 1000),
    Table("hash at capacity", "hash", 500, 1500, writes=(90, 80), full=True),
    Table("hash at capacity, no_prealloc", "hash", 500, 1500, NO_PREALLOC, (90, 80), full=True),
    Table("hash, no_prealloc", "hash", 1000, 1000, NO_PREALLOC),
    Table("hash, one inserts, one deletes", "hash", 1000, 1000, writes=(100, 0)),
    Table("hash, one inserts what one deletes", "hash", 1000, 1, writes=(100, 0)),
    Table("percpu_hash", "percpu_hash", 1000, 1000),
    Table("percpu_hash, one inserts", "percpu_hash", 500, 500, NO_PREALLOC, (100, 0)),
    Table("lru_hash that evicts", "lru_hash", 500, 3000, writes=(100, 100)),
    Table("lru_hash", "lru_hash", 1000, 2000, writes=(70, 50)),
    Table("lru_hash, no_common_lru", "lru_hash", 500, 3000, NO_COMMON_LRU, (100, 90)),
    Table("lru_percpu_hash", "lru_percpu_hash", 500, 3000, writes=(90, 90)),
    Table("lpm_trie", "lpm_trie", 1000, 1000, NO_PREALLOC),
    Table("lpm_trie at capacity", "lpm_trie", 300, 900, NO_PREALLOC, (90, 80), full=True),
]


def keys_of(name: str, key_size: int, numbers: list[int]) -> list[bytes]:
    """As tests/kernel/hammer.c writes them."""
    return [struct.pack("=II", 32, number)[8 - key_size :] for number in numbers]


def present(fd: int, keys: list[bytes]) -> int:
    info = kernel.map_info(fd)
    cpus = kernel.possible_cpus() if "percpu" in str(info.type) else 64
    size = max(info.value_size, 8) * cpus
    return sum(kernel.map_lookup(fd, key, size) is not None for key in keys)


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_tables(counters: list[MapCounter], stack: ExitStack, hammer: Hammer, table: Table) -> None:
    fd = create(stack, table.type, table.key_size, table.value_size, table.max_entries, table.flags)
    numbers = list(range(table.keys))
    process = hammer.start("table", fd, *table.writes, table.key_size, 0, *numbers, fds=(fd,))
    done, counts = watched(counters, fd, table.max_entries, process)
    found = present(fd, keys_of(table.type, table.key_size, numbers))
    walked = sum(1 for _ in kernel.map_keys(fd, table.key_size))
    assert counts == [found] * len(counts)
    assert walked == found
    assert done.written >= 1000
    assert done.taken >= 1000 or min(table.writes) == 100
    assert done.refused > 0 or not table.full


Owners = Callable[[ExitStack, int], list[int]]


@pytest.mark.parametrize(
    ("name", "owners"), [("sk_storage", sockets_of_own), ("task_storage", processes_of_own)]
)
def test_storages(
    counters: list[MapCounter],
    stack: ExitStack,
    hammer: Hammer,
    build_object: BuildObject,
    name: str,
    owners: Owners,
) -> None:
    fd, fds = storage(stack, build_object, name), owners(stack, 24)
    process = hammer.start("table", fd, 50, 50, 4, 0, *fds, fds=(fd, *fds))
    done, counts = watched(counters, fd, len(fds), process)
    assert counts == [present(fd, [u32(owner) for owner in fds])] * len(counts)
    assert min(done.written, done.taken) >= 1000


@pytest.mark.parametrize("name", ["array_of_maps", "hash_of_maps"])
def test_maps_of_maps(
    counters: list[MapCounter], stack: ExitStack, hammer: Hammer, name: str
) -> None:
    inner = create(stack, "array", 4, 4, 1)
    fd = create_outer(stack, name, 20, inner)
    numbers = list(range(20))
    # Each change waits for a grace period of RCU.
    process = hammer.start("table", fd, 60, 40, 4, inner, *numbers, fds=(fd, inner), least=10)
    done, counts = watched(counters, fd, 20, process)
    assert counts == [present(fd, keys_of(name, 4, numbers))] * len(counts)
    assert min(done.written, done.taken) >= 10


def test_programs(
    counters: list[MapCounter], stack: ExitStack, hammer: Hammer, build_object: BuildObject
) -> None:
    opened = stack.enter_context(kernel.open_object(build_object("counter").read_bytes(), "x"))
    opened.load()
    program = opened.program_fd("count")
    fd = create(stack, "prog_array", 4, 4, 100)
    numbers = list(range(100))
    process = hammer.start("table", fd, 60, 40, 4, program, *numbers, fds=(fd, program))
    done, counts = watched(counters, fd, 100, process)
    assert counts == [present(fd, keys_of("prog_array", 4, numbers))] * len(counts)
    assert min(done.written, done.taken) >= 1000


@pytest.mark.parametrize("name", ["devmap", "devmap_hash"])
def test_devices(counters: list[MapCounter], stack: ExitStack, hammer: Hammer, name: str) -> None:
    fd = create(stack, name, 4, 4, 100)
    numbers = list(range(100 if name == "devmap" else 300))
    process = hammer.start("table", fd, 60, 50, 4, 1, *numbers, fds=(fd,))
    done, counts = watched(counters, fd, 100, process)
    assert counts == [present(fd, keys_of(name, 4, numbers))] * len(counts)
    assert min(done.written, done.taken) >= 1000


@pytest.mark.parametrize("name", ["sockhash", "sockmap"])
def test_sockets(counters: list[MapCounter], stack: ExitStack, hammer: Hammer, name: str) -> None:
    sockets = bound_sockets(stack, 30)
    most = 20 if name == "sockhash" else 30
    fd = create(stack, name, 4, 8, most)
    pairs = [f"{number}={sock}" for number, sock in enumerate(sockets)]
    process = hammer.start("table", fd, 60, 50, 4, 0, *pairs, fds=(fd, *sockets))
    done, counts = watched(counters, fd, most, process)
    assert counts == [present(fd, [u32(number) for number in range(30)])] * len(counts)
    assert min(done.written, done.taken) >= 1000


def bound_sockets(stack: ExitStack, wanted: int) -> list[int]:
    fds = []
    for sock in sockets_of_own(stack, wanted):
        with socket.socket(fileno=os.dup(sock)) as same:
            same.bind(("127.0.0.1", 0))
        fds.append(sock)
    return fds


@pytest.mark.parametrize("name", ["queue", "stack"])
def test_queues(counters: list[MapCounter], stack: ExitStack, hammer: Hammer, name: str) -> None:
    fd = create(stack, name, 0, 8, 100)
    process = hammer.start("queue", fd, 55, 50, fds=(fd,))
    done, counts = watched(counters, fd, 100, process)
    assert counts == [done.written - done.taken] * len(counts)
    assert min(done.written, done.taken) >= 1000


def test_a_bloom_filter(counters: list[MapCounter], stack: ExitStack, hammer: Hammer) -> None:
    """It may be given more than it was made for; what has all its bits set tells no more."""
    fd = create(stack, "bloom_filter", 0, 8, 1000)
    process = hammer.start("queue", fd, 100, 100, fds=(fd,))
    done, counts = watched(counters, fd, 20_000, process)
    assert counts == [counts[0]] * len(counts)
    assert done.written > 1000
    assert 1000 < counts[0] <= done.written


def test_a_ring_buffer(
    counters: list[MapCounter], stack: ExitStack, hammer: Hammer, build_object: BuildObject
) -> None:
    """One process fills it and reads it; then three records are left."""
    opened = stack.enter_context(kernel.open_object(build_object("filler").read_bytes(), "x"))
    opened.load()
    fd, program = opened.map_fd("ring"), opened.program_fd("fill")
    process = hammer.start("ring", fd, program, fds=(fd, program))
    done, counts = watched(counters, fd, 1 << 16, process)
    assert min(done.written, done.taken) >= 1000
    assert all(number % RECORD == 0 for number in counts)
    room = (1 << 16) - counts[0]
    for _ in range(3 if room > 3 * RECORD else 0):
        assert run_program(program) == 0
    more = [counter.counts()[kernel.map_info(fd).id] for counter in counters]
    assert more == [number + (3 * RECORD if room > 3 * RECORD else 0) for number in counts]
