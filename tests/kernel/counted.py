"""Maps made to be counted, as the tests of counts share them."""

import os
import struct
from contextlib import ExitStack

from bpfkeeperd import kernel
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.maptypes import BY_NAME


def create(
    stack: ExitStack, name: str, key_size: int, value_size: int, max_entries: int, flags: int = 0
) -> int:
    fd = kernel.map_create(
        BY_NAME[name].number, "counted", key_size, value_size, max_entries, flags=flags
    )
    stack.callback(os.close, fd)
    return fd


def create_outer(stack: ExitStack, name: str, max_entries: int, inner: int) -> int:
    """A map-in-map with four bytes of key, for maps like this one."""
    fd = kernel.map_create(BY_NAME[name].number, "counted", 4, 4, max_entries, inner_fd=inner)
    stack.callback(os.close, fd)
    return fd


def count(counter: MapCounter, fd: int) -> int | None:
    return counter.counts().get(kernel.map_info(fd).id)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)
