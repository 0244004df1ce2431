"""Stack traces counted for each process: a perf_event program, attached by whoever opens events."""

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfkeeperd import kernel
from tests.examples.conftest import Example, MakeExample
from tests.examples.fullness import used

PAGES = 64
PLACE = struct.Struct("=Iii16s")

SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}.get(platform.machine(), 298)
PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS = 1, 2
PERF_FLAG_FD_CLOEXEC = 8
IOC_ENABLE, IOC_DISABLE, IOC_SET_BPF = 0x2400, 0x2401, 0x40042408

libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def page_faults(program: Path) -> Iterator[int]:
    """Every page fault of this thread runs a pinned program; the event, not yet enabled."""
    attributes = bytearray(112)
    size, period, disabled = len(attributes), 1, 1
    struct.pack_into(
        "=IIQQQQQ",
        attributes,
        0,
        *(PERF_TYPE_SOFTWARE, size, PERF_COUNT_SW_PAGE_FAULTS, period, 0, 0, disabled),
    )
    buffer = ctypes.create_string_buffer(bytes(attributes), size)
    event = libc.syscall(SYS_PERF_EVENT_OPEN, buffer, 0, -1, -1, PERF_FLAG_FD_CLOEXEC)
    assert event >= 0, os.strerror(ctypes.get_errno())
    with kernel.holding(event):
        fd = kernel.pinned(str(program), kernel.PinKind.PROGRAM)
        assert fd is not None
        with kernel.holding(fd):
            fcntl.ioctl(event, IOC_SET_BPF, fd)
        yield event


@contextmanager
def fresh_pages(event: int) -> Iterator[mmap.mmap]:
    """Memory that nobody has touched, with an event enabled meanwhile."""
    with mmap.mmap(-1, PAGES * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        fcntl.ioctl(event, IOC_ENABLE)
        yield memory
        fcntl.ioctl(event, IOC_DISABLE)


def fault_in_memset(event: int) -> int:
    """Has memset() touch fresh pages; how many faults the event has seen in all."""
    with fresh_pages(event) as memory:
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc.memset(ctypes.c_void_p(start), 1, ctypes.c_size_t(len(memory)))
    return seen_by(event)


def fault_in_read(event: int) -> int:
    """The same, with the kernel touching them."""
    with open("/dev/zero", "rb", buffering=0) as zero, fresh_pages(event) as memory:
        assert zero.readinto(memory) == len(memory)
    return seen_by(event)


def seen_by(event: int) -> int:
    (seen,) = struct.unpack("=Q", os.read(event, 8))
    return int(seen)


def counts(stacks: Example) -> Counter[tuple[int, int]]:
    """User and kernel stack IDs to counts; all of them are this process's."""
    found = Counter[tuple[int, int]]()
    command = Path("/proc/self/comm").read_bytes().strip()
    for key, value in stacks.contents("stack_counts").items():
        pid, user, in_kernel, name = PLACE.unpack(key)
        assert (pid, name.rstrip(b"\0")) == (os.getpid(), command)
        found[user, in_kernel] += int.from_bytes(value, "little")
    return found


def traces(stacks: Example) -> dict[int, tuple[int, ...]]:
    return {
        int.from_bytes(key, "little"): struct.unpack("=127Q", value)
        for key, value in stacks.contents("stacks").items()
    }


def counted(stacks: Example, *, user: range, kernel: range = range(0)) -> int:
    """The counts of traces whose innermost calls are in these ranges; an empty one: no trace.

    Two traces may want the same slot, which then is told in place of the second one's ID: whatever
    trace that was, it is counted.
    """
    known = traces(stacks)

    def fits(stack: int, wanted: range) -> bool:
        if stack < 0:
            return stack == -errno.EEXIST or (stack == -errno.EFAULT and not wanted)
        return known[stack][0] in wanted

    found = counts(stacks).items()
    return sum(count for ids, count in found if all(map(fits, ids, (user, kernel))))


def in_memset(stacks: Example) -> int:
    start = ctypes.cast(libc.memset, ctypes.c_void_p).value or 0
    return counted(stacks, user=range(start, start + 0x1000))


def test_traces_and_their_counts_go_on(example: MakeExample) -> None:
    stacks = example("stacks")
    with stacks.keeper() as keeper:
        ids = stacks.map_ids()
        assert set(ids) == {"stacks", "stack_counts"}
        with page_faults(stacks.pinned_program("stacks", "count_stacks")) as event:
            seen = fault_in_memset(event)
            assert counts(stacks).total() == seen >= PAGES
            assert in_memset(stacks) >= PAGES
            before, known = counts(stacks), traces(stacks)
            assert used(stacks) == {"stack_counts": len(before), "stacks": len(known)}

            stacks.reload(keeper, force=True)
            assert stacks.map_ids() == ids
            assert (counts(stacks), traces(stacks)) == (before, known)
            # The first event has the former program, on the same maps.
            seen = fault_in_memset(event)
            assert counts(stacks).total() == seen >= 2 * PAGES
            with page_faults(stacks.pinned_program("stacks", "count_stacks")) as second:
                seen += fault_in_memset(second)
            assert counts(stacks).total() == seen >= 3 * PAGES
            assert in_memset(stacks) >= 3 * PAGES
            assert traces(stacks).items() >= known.items()
            assert all(counts(stacks)[place] >= count for place, count in before.items())


def test_traces_of_the_kernel(example: MakeExample) -> None:
    stacks = example("stacks")
    with stacks.keeper():
        program = stacks.pinned_program("stacks", "count_stacks")
        with page_faults(program) as event:
            assert fault_in_read(event) == counts(stacks).total()
        anywhere = range(1, 1 << 63), range(1 << 63, 1 << 64)
        assert counted(stacks, user=anywhere[0], kernel=anywhere[1]) >= PAGES
