"""Maps made to be counted, as the tests of counts share them."""

import os
import struct
from contextlib import ExitStack

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.maptypes import BY_NAME, BY_NUMBER
from tests.conftest import BuildObject
from tests.kernel.mapmaking import is_in_kernel


def create(
    stack: ExitStack, name: str, key_size: int, value_size: int, max_entries: int, flags: int = 0
) -> int:
    """A map, or the end of the test where the kernel has no such type."""
    known = BY_NAME[name]
    if not is_in_kernel(known):
        pytest.skip(f"this kernel has no {name}")
    fd = kernel.map_create(known.number, "counted", key_size, value_size, max_entries, flags=flags)
    stack.callback(os.close, fd)
    return fd


def create_outer(stack: ExitStack, name: str, max_entries: int, inner: int) -> int:
    """A map-in-map with four bytes of key, for maps like this one."""
    fd = kernel.map_create(BY_NAME[name].number, "counted", 4, 4, max_entries, inner_fd=inner)
    stack.callback(os.close, fd)
    return fd


def storage(stack: ExitStack, build_object: BuildObject, name: str) -> int:
    """A local storage, or the end of the test where the kernel has no such type."""
    known = BY_NAME[name]
    if not is_in_kernel(known):
        pytest.skip(f"this kernel has no {name}")
    data = build_object("storages", ONLY=name, TYPE=known.number).read_bytes()
    opened = stack.enter_context(kernel.open_object(data, "counted"))
    opened.load()
    return opened.map_fd(name)


def count(counter: MapCounter, fd: int) -> int | None:
    """What the counter says of a map, or the end of the test where it says that it cannot."""
    info = kernel.map_info(fd)
    found = counter.counts().get(info.id)
    if not counter.counted_by(info.type):
        assert found is None
        pytest.skip(f"{counter.program.name} does not count {BY_NUMBER[info.type].name}")
    return found


def u32(number: int) -> bytes:
    return struct.pack("=I", number)
