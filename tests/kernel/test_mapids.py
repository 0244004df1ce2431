"""How far the allocator of map IDs is, against the IDs that maps get."""

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpfkeeperd import iterators, kernel, mapids
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.errors import KernelError
from bpfkeeperd.mapids import PROGRAMS, MapIdAllocator
from tests.kernel.conftest import KERNEL_BTF, locked_down

READINGS = 1000
TRIES = 200
"""Others on this machine make maps, too: in one of these tries none of them does."""


def next_map() -> int:
    """Makes a map, which is gone at once; its ID."""
    with kernel.holding(kernel.map_create(2, "numbered", 4, 4, 1)) as fd:
        return kernel.map_info(fd).id


def named() -> bool:
    """Whether this kernel names its allocator."""
    symbols = Path("/proc/kallsyms").read_text()
    return any(
        line.split()[2] == "map_idr" and int(line.split()[0], 16)
        for line in symbols.splitlines()
        if "map_idr" in line
    )


def takes_no_id(action: Callable[[], object]) -> bool:
    """Whether a map that is made after it has the ID after that of one that is made before it."""
    for _ in range(TRIES):
        before = next_map()
        action()
        if next_map() == before + 1:
            return True
    return False


@pytest.fixture
def allocator(stack: ExitStack) -> MapIdAllocator:
    return stack.enter_context(MapIdAllocator.open())


def test_the_comparison_notices_an_id_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.kernel.test_mapids.TRIES", 20)
    assert not takes_no_id(next_map)
    assert takes_no_id(lambda: None)


def test_a_reading_takes_no_id(allocator: MapIdAllocator, best: MapCounter) -> None:
    def read() -> None:
        for _ in range(READINGS // 50):
            allocator.position(best.survey().highest_id)

    for _ in range(50):
        assert takes_no_id(read)


def test_loading_takes_no_id() -> None:
    def load() -> None:
        with MapIdAllocator.open():
            pass

    assert takes_no_id(load)


def test_the_position_is_the_id_of_the_last_map(allocator: MapIdAllocator) -> None:
    for _ in range(TRIES):
        before = next_map()
        position = allocator.position(before)
        after = next_map()
        assert before <= position.allocated < after
        if position.allocated == before == after - 1:
            break
    else:
        pytest.fail("others always make maps")
    assert position.exact == named()


def test_it_goes_on_from_reading_to_reading(allocator: MapIdAllocator, best: MapCounter) -> None:
    positions = []
    for _ in range(10):
        survey = best.survey()
        position = allocator.position(survey.highest_id)
        assert position.allocated >= survey.highest_id
        positions.append(position.allocated)
        next_map()
    assert positions == sorted(positions)
    if named():
        assert len({*positions}) == 10


def test_a_kernel_that_does_not_name_it(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapids, "PROGRAMS", ())
    allocator = stack.enter_context(MapIdAllocator.open())
    highest = [5, 9, 3, 9, 12]
    assert [allocator.position(number) for number in highest] == [
        (5, False), (9, False), (9, False), (9, False), (12, False)
    ]  # fmt: skip


def test_a_kernel_that_lets_nobody_read_it(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program loads, and what it reads is 0."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", lambda fd, size: bytes(size))
        allocator = stack.enter_context(MapIdAllocator.open())
    assert allocator.position(5) == (5, False)


def test_an_iterator_that_cannot_be_made(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """That costs the exact number, and neither a descriptor nor the daemon."""

    def refused(link_fd: int) -> int:
        raise KernelError("make an iterator", errno.EMFILE)

    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "iter_create", refused)
        allocator = stack.enter_context(MapIdAllocator.open())
    assert allocator.position(5) == (5, False)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    if program == PROGRAMS[0] and locked_down():
        pytest.skip("this kernel is locked down: it has no bpf_probe_read_kernel()")
    if program == PROGRAMS[1] and b"\0bpf_rdonly_cast\0" not in KERNEL_BTF.read_bytes():
        pytest.skip("this kernel has no bpf_rdonly_cast()")
    # That it loads is to be seen on kernels that do not name the allocator, too.
    link_fd = iterators.load(iterators.OBJECTS / mapids.OBJECT_NAME, program)
    stack.callback(os.close, link_fd)
    assert (mapids._next_id(link_fd) is not None) == named()
    allocator = MapIdAllocator(link_fd if named() else -1)
    before = next_map()
    assert before <= allocator.position(before).allocated < next_map()


def test_it_holds_one_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with MapIdAllocator.open() as allocator:
        allocator.position(1)
        assert len(os.listdir("/proc/self/fd")) == before + named()
    allocator.close()
    assert allocator.position(7) == (7, False)
