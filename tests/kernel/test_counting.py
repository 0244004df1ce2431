"""Counts against what is known to be in the maps, on the real kernel."""

import ctypes
import errno
import mmap
import os
import platform
import random
import resource
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from bpfkeeperd import iterators, kernel
from bpfkeeperd.counting import PROGRAMS, MapCounter
from bpfkeeperd.errors import KeeperError, KernelError, ObjectError
from bpfkeeperd.maptypes import BY_NAME, MAP_TYPES, Count, MapType
from tests.kernel.conftest import KERNEL_BTF, locked_down
from tests.kernel.counted import count, create, create_outer
from tests.kernel.mapmaking import is_in_kernel, legal, made

NO_PREALLOC = 1
BPF_LOOP, PROBE_READ, NO_HELPER = (
    struct.pack("=BBhi", 0x85, 0, 0, helper) for helper in (181, 113, 99999)
)
"""The instruction that calls a helper, as it stands in the object."""
MAP_UPDATE, MAP_LOOKUP_AND_DELETE = 2, 21


def bpf(command: int, attributes: bytes) -> int:
    """The commands that the kernel module has no use for."""
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, command, attributes, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def walked(fd: int) -> int:
    return sum(1 for _ in kernel.map_keys(fd, kernel.map_info(fd).key_size))


def a_key(name: str, number: int) -> bytes:
    """Eight bytes: a number, or for a trie the length of the prefix and 32 bits."""
    return struct.pack("=II", 32 if name == "lpm_trie" else 0, number)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("hash", 0),
        ("hash", NO_PREALLOC),
        ("percpu_hash", 0),
        ("percpu_hash", NO_PREALLOC),
        ("lru_hash", 0),
        ("lru_percpu_hash", 0),
        ("lpm_trie", NO_PREALLOC),
    ],
)
def test_entries_come_and_go(counter: MapCounter, stack: ExitStack, name: str, flags: int) -> None:
    fd = create(stack, name, 8, 8, 1000, flags)
    value = bytes(8 * (kernel.possible_cpus() if BY_NAME[name].per_cpu else 1))
    assert count(counter, fd) == 0
    for number in range(300):
        kernel.map_update(fd, a_key(name, number), value)
    assert count(counter, fd) == walked(fd) == 300
    for number in range(100):
        kernel.map_delete(fd, a_key(name, number))
        kernel.map_update(fd, a_key(name, number + 150), value)  # one that is there already
    assert count(counter, fd) == walked(fd) == 200


def test_a_full_hash(counter: MapCounter, stack: ExitStack) -> None:
    fd = create(stack, "hash", 8, 8, 50)
    for number in range(50):
        kernel.map_update(fd, a_key("hash", number), bytes(8))
    with pytest.raises(KernelError):
        kernel.map_update(fd, a_key("hash", 50), bytes(8))
    assert count(counter, fd) == 50


@pytest.mark.parametrize("name", ["lru_hash", "lru_percpu_hash"])
def test_an_lru_map_that_evicts(counter: MapCounter, stack: ExitStack, name: str) -> None:
    fd = create(stack, name, 8, 8, 1000)
    value = bytes(8 * (kernel.possible_cpus() if BY_NAME[name].per_cpu else 1))
    for number in range(3000):
        kernel.map_update(fd, a_key(name, number), value)
    found = walked(fd)
    assert 0 < found <= 1000
    assert count(counter, fd) == found


def test_prefixes_within_prefixes(counter: MapCounter, stack: ExitStack) -> None:
    """A trie has nodes that are no entries: they must not count."""
    fd = create(stack, "lpm_trie", 8, 4, 100, NO_PREALLOC)
    keys = {
        struct.pack("=I", bits) + bytes(address)
        for bits, address in [
            (0, (0, 0, 0, 0)),
            (8, (10, 0, 0, 0)),
            (24, (10, 1, 2, 0)),
            (24, (10, 1, 3, 0)),
            (32, (192, 168, 0, 1)),
        ]
    }
    for key in keys:
        kernel.map_update(fd, key, bytes(4))
    assert count(counter, fd) == walked(fd) == len(keys)
    kernel.map_delete(fd, struct.pack("=I", 8) + bytes((10, 0, 0, 0)))
    assert count(counter, fd) == walked(fd) == len(keys) - 1


def test_a_hash_of_maps(counter: MapCounter, stack: ExitStack) -> None:
    inner = create(stack, "array", 4, 4, 1)
    fd = create_outer(stack, "hash_of_maps", 10, inner)
    assert count(counter, fd) == 0
    for number in range(3):
        kernel.map_update(fd, struct.pack("=I", number), struct.pack("=I", inner))
    assert count(counter, fd) == walked(fd) == 3
    kernel.map_delete(fd, struct.pack("=I", 1))
    assert count(counter, fd) == walked(fd) == 2


def test_a_sockhash(counter: MapCounter, stack: ExitStack) -> None:
    fd = create(stack, "sockhash", 4, 4, 10)
    listener = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
    sockets = []
    for _ in range(2):
        sockets.append(stack.enter_context(socket.create_connection(listener.getsockname())))
        sockets.append(stack.enter_context(closing(listener.accept()[0])))
    assert count(counter, fd) == 0
    for number, connection in enumerate(sockets):
        kernel.map_update(fd, struct.pack("=I", number), struct.pack("=I", connection.fileno()))
    assert count(counter, fd) == walked(fd) == 4
    kernel.map_delete(fd, struct.pack("=I", 2))
    assert count(counter, fd) == walked(fd) == 3
    sockets[0].close()  # a socket that closes leaves the map by itself
    assert count(counter, fd) == walked(fd) == 2


@pytest.mark.parametrize("name", ["queue", "stack"])
@pytest.mark.parametrize("max_entries", [1, 7, 8])
def test_a_queue_that_goes_round(
    counter: MapCounter, stack: ExitStack, name: str, max_entries: int
) -> None:
    fd = create(stack, name, 0, 4, max_entries)
    value = ctypes.create_string_buffer(4)
    attributes = struct.pack("=I4xQQQ", fd, 0, ctypes.addressof(value), 0)
    present, chance = 0, random.Random(1)
    assert count(counter, fd) == 0
    for _ in range(100):
        if present < max_entries and (present == 0 or chance.random() < 0.55):
            bpf(MAP_UPDATE, attributes)
            present += 1
        else:
            bpf(MAP_LOOKUP_AND_DELETE, attributes)
            present -= 1
        assert count(counter, fd) == present


def positions(stack: ExitStack, fd: int) -> Callable[[int], None]:
    """Writes a ring buffer's position that belongs to user space, which maps its page."""
    user_ringbuf = kernel.map_info(fd).type == BY_NAME["user_ringbuf"].number
    page = kernel.page_size()
    # The consumer's page is the first, the producer's the second.
    mapped = mmap.mmap(
        fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=page * user_ringbuf
    )
    stack.callback(mapped.close)

    def write(position: int) -> None:
        mapped[:8] = struct.pack("=Q", position % (1 << 64))

    return write


@pytest.mark.parametrize("name", ["ringbuf", "user_ringbuf"])
def test_ring_buffers_in_bytes(counter: MapCounter, stack: ExitStack, name: str) -> None:
    size = 2 * kernel.page_size()
    fd = create(stack, name, 0, 0, size)
    assert count(counter, fd) == 0
    write = positions(stack, fd)
    # Without a program the kernel's position stays 0: the other one makes the distance.
    ahead = 1 if name == "user_ringbuf" else -1
    for position, unread in [(24, 24), (size, size), (size + 8, size), (-8, 0), (1 << 62, size)]:
        write(ahead * position)
        assert count(counter, fd) == unread


def test_what_cannot_be_counted_is_not_there(counter: MapCounter, stack: ExitStack) -> None:
    array = create(stack, "array", 4, 4, 10)
    trie = create(stack, "lpm_trie", 8, 8, 10, NO_PREALLOC)
    counts = counter.counts()
    assert kernel.map_info(array).id not in counts
    assert counts[kernel.map_info(trie).id] == 0


@pytest.mark.parametrize("known", MAP_TYPES, ids=lambda known: known.name)
def test_counted_by_says_what_is_counted(
    counter: MapCounter, stack: ExitStack, known: MapType
) -> None:
    said = counter.counted_by(known.number)
    if known.count is Count.NONE:
        assert said == ""
    if not is_in_kernel(known):
        pytest.skip(f"this kernel has no {known.name}")
    try:
        fd = stack.enter_context(made(legal(known)))
    except KernelError as error:
        assert error.errno in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP)
        pytest.skip(f"this kernel makes no {known.name} of that form")
    assert (kernel.map_info(fd).id in counter.counts()) == bool(said)


def test_how_counts_are_had(counter: MapCounter) -> None:
    said = {known.name: counter.counted_by(known.number) for known in MAP_TYPES}
    by_kfunc = "kfunc" if counter.program.kfunc else ""
    by_scan, by_estimate = ("scan", "estimate") if counter.program.scans else ("", "")
    assert (said["hash"], said["hash_of_maps"], said["lpm_trie"]) == (by_kfunc, by_kfunc, "field")
    assert (said["devmap"], said["devmap_hash"], said["sk_storage"]) == (by_scan, "field", by_scan)
    assert said["bloom_filter"] == by_estimate
    assert (said["array"], counter.counted_by(99)) == ("", "")


def test_a_survey(counter: MapCounter, stack: ExitStack) -> None:
    before = counter.survey()
    array = create(stack, "array", 4, 4, 10)
    trie = create(stack, "lpm_trie", 8, 8, 10, NO_PREALLOC)
    array_id, trie_id = kernel.map_info(array).id, kernel.map_info(trie).id
    survey = counter.survey()
    assert survey.counts[trie_id] == 0 and array_id not in survey.counts
    assert survey.highest_id >= trie_id > before.highest_id
    assert survey.maps > len(survey.counts)
    assert len({*survey.counts, array_id}) <= survey.maps <= survey.highest_id


def test_a_survey_of_nothing(counter: MapCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterators, "read", lambda fd: b"")
    assert counter.survey() == ({}, 0, 0)


def test_records_split_between_reads(
    counter: MapCounter, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = [create(stack, "lpm_trie", 8, 8, 10, NO_PREALLOC) for _ in range(5)]
    for fd in fds:
        kernel.map_update(fd, bytes(8), bytes(8))
    mine = {kernel.map_info(fd).id: 1 for fd in fds}
    monkeypatch.setattr(iterators, "_READ_BYTES", 7)
    assert mine.items() <= counter.counts().items()


def test_a_pause_of_the_kernel_is_not_the_end() -> None:
    """As it makes one after each million of objects."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    with ExitStack() as stack:
        stack.callback(os.close, reader)

        def finish() -> None:
            with kernel.holding(writer):
                os.write(writer, b"rest")

        thread = threading.Timer(0.05, finish)
        os.write(writer, b"all but the ")
        thread.start()
        stack.callback(thread.join)
        assert iterators.read_all(reader) == b"all but the rest"


def test_more_maps_than_a_read_takes(counter: MapCounter, stack: ExitStack) -> None:
    """One read gives 32 KiB at most, 2048 records."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    ids = {kernel.map_info(create(stack, "lpm_trie", 8, 8, 1, NO_PREALLOC)).id for _ in range(2500)}
    assert ids <= counter.counts().keys()


def with_objects(
    monkeypatch: pytest.MonkeyPatch, directory: Path, changes: dict[bytes, bytes]
) -> None:
    """Has the programs ask for other things than this kernel has."""
    for name in {program.object_name for program in PROGRAMS}:
        data = (iterators.OBJECTS / f"{name}.bpf.o").read_bytes()
        for old, new in changes.items():
            data = data.replace(old, new)
        (directory / f"{name}.bpf.o").write_bytes(data)
    monkeypatch.setattr(iterators, "OBJECTS", directory)


WITHOUT_KFUNC = {b"bpf_map_sum_elem_count": b"bpf_map_sum_elem_xxxxx"}
WITHOUT_LOOP = {BPF_LOOP: NO_HELPER}
IN_LOCKDOWN = {PROBE_READ: NO_HELPER}


@pytest.mark.parametrize(
    ("changes", "program"),
    [
        (WITHOUT_KFUNC, "count_maps_without_kfunc"),
        (WITHOUT_KFUNC | WITHOUT_LOOP, "count_maps_by_field"),
        (IN_LOCKDOWN, "count_maps_in_lockdown"),
        (IN_LOCKDOWN | WITHOUT_KFUNC, "count_maps_in_lockdown_without_kfunc"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_on_another_kernel(
    changes: dict[bytes, bytes],
    program: str,
    best: MapCounter,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stack: ExitStack,
) -> None:
    """The kernel does refuse what it does not know: a kfunc of another name, another helper."""
    if best.program != PROGRAMS[0]:
        pytest.skip("this kernel does not take the first of the programs")
    with_objects(monkeypatch, tmp_path, changes)
    counter = stack.enter_context(MapCounter.open())
    assert counter.program.name == program
    hash_map = create(stack, "hash", 8, 8, 10)
    trie = create(stack, "lpm_trie", 8, 8, 10, NO_PREALLOC)
    for name, fd in (("hash", hash_map), ("lpm_trie", trie)):
        kernel.map_update(fd, a_key(name, 1), bytes(8))
    outer = create_outer(stack, "array_of_maps", 3, trie)
    kernel.map_update(outer, bytes(4), struct.pack("=I", trie))
    bloom = create(stack, "bloom_filter", 0, 8, 100)
    kernel.map_update(bloom, None, bytes(8))
    fds = (hash_map, trie, outer, bloom)
    counts = counter.counts()
    kfunc, scans = counter.program.kfunc, counter.program.scans
    assert [counts.get(kernel.map_info(fd).id) for fd in fds] == [
        1 if kfunc else None,
        1,
        *((1, 1) if scans else (None, None)),
    ]
    assert [counter.counted_by(kernel.map_info(fd).type) for fd in fds] == [
        "kfunc" if kfunc else "",
        "field",
        *(("scan", "estimate") if scans else ("", "")),
    ]


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (util-linux)")
def test_a_kfunc_that_is_not_there_takes_no_capability(
    best: MapCounter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """libbpf would look for it in the BTF of modules, which is for CAP_SYS_ADMIN."""
    if not best.program.scans or locked_down():
        pytest.skip("this kernel does not take the second of the programs")
    with_objects(monkeypatch, tmp_path, WITHOUT_KFUNC)
    code = (
        "import sys; from pathlib import Path; from bpfkeeperd import counting, iterators;"
        " iterators.OBJECTS = Path(sys.argv[1]); print(counting.MapCounter.open().program.name)"
    )
    three = "--bounding-set=-all,+bpf,+perfmon,+net_admin"
    command = ["setpriv", three, "--inh-caps=-all", sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout == "count_maps_without_kfunc\n", done.stderr


def test_the_best_that_this_kernel_takes(best: MapCounter) -> None:
    """What the kernel has is told from its BTF."""
    btf = KERNEL_BTF.read_bytes()
    assert best.program.kfunc == (b"\0bpf_map_sum_elem_count\0" in btf)
    assert best.program.scans == (b"\0bpf_loop\0" in btf)
    assert (best.program.object_name == "map_counts_lockdown") == locked_down()


def test_none_of_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(file: Path, program: str) -> int:
        raise ObjectError(f"cannot load program {program}: no such kfunc")

    monkeypatch.setattr(iterators, "load", refusing)
    with pytest.raises(KeeperError) as raised:
        MapCounter.open(PROGRAMS[:2])
    assert str(raised.value) == (
        "cannot count map entries: this kernel takes none of the programs (count_maps: cannot load"
        " program count_maps: no such kfunc; count_maps_without_kfunc: cannot load program"
        " count_maps_without_kfunc: no such kfunc): Linux 5.8 or newer with BTF, CAP_BPF and"
        " CAP_PERFMON are needed, and 6.2 where the kernel is locked down"
    )


def test_the_object_file_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(iterators, "OBJECTS", tmp_path)
    with pytest.raises(
        KeeperError, match=r"map_counts\.bpf\.o: No such file or directory: install"
    ):
        MapCounter.open()


def test_a_counter_holds_one_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with MapCounter.open() as counter:
        counter.counts()
        assert len(os.listdir("/proc/self/fd")) == before + 1
    counter.close()
    with pytest.raises(KernelError, match="cannot create an iterator"):
        counter.counts()
