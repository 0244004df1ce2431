"""The filled slots of a map-in-map or a program array, read in one call."""

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KernelError


def map_slots(fd: int, key_size: int, *, array: bool, most: int) -> list[tuple[bytes, int]]:
    """Key and ID of the filled ones of the first slots of an array, or of so many keys of a hash.

    While others delete, a key of a hash may come twice.

    Raises:
        KernelError: the map does not tell what it holds.
    """
    stream, size = ffi.new("char **"), ffi.new("size_t *")
    result = lib.keeper_slots(fd, key_size, array, most, stream, size)
    if result < 0:
        raise KernelError("read the slots of a map", -result)
    try:
        data = bytes(ffi.buffer(stream[0], size[0])) if size[0] else b""
    finally:
        lib.free(stream[0])
    record = key_size + 4
    ids = memoryview(data)
    return [
        (data[at : at + key_size], ids[at + key_size : at + record].cast("I")[0])
        for at in range(0, len(data), record)
    ]
