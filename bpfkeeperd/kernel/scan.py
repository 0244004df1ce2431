"""Everything pinned below a directory, read in one call."""

import os
import struct
from enum import IntEnum
from typing import NamedTuple

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KernelError

# struct keeper_pin of _build/libbpf.h
_PIN = struct.Struct("=6IQ2I")


class PinKind(IntEnum):
    """``enum keeper_kind`` of _build/libbpf.h."""

    OTHER = 0
    MAP = 1
    PROGRAM = 2
    LINK = 3
    DIRECTORY = 4


class Pin(NamedTuple):
    """One pin, or a directory without any."""

    path: list[str]
    """Its names, from the scanned directory down."""
    kind: int
    """A `PinKind`."""
    error: int
    """The errno of reading it; 0 when it could be read."""
    id: int
    type: int
    """Map, program or link type."""
    prog_id: int
    attach_type: int
    target_id: int
    """Links: the cgroup's ID or the interface's index, 0 when the target is gone."""
    map_ids: tuple[int, ...]
    """Programs: the maps in use."""


def scan(root: str, depth: int, kind: PinKind) -> list[Pin]:
    """All pins and empty directories below ``root``; nothing when it is not there.

    Pins are read as of the given kind, PROGRAM or LINK: for directories where nobody else pins.
    """
    stream, size = ffi.new("char **"), ffi.new("size_t *")
    result = lib.keeper_scan(os.fsencode(root), depth, kind, stream, size)
    if result < 0:
        raise KernelError(f"read {root}", -result)
    try:
        data = bytes(ffi.buffer(stream[0], size[0])) if size[0] else b""
    finally:
        lib.free(stream[0])
    pins = []
    offset = 0
    while offset < len(data):
        kind, error, id_, type_, prog_id, attach_type, target_id, maps, length = _PIN.unpack_from(
            data, offset
        )
        offset += _PIN.size
        map_ids = struct.unpack_from(f"={maps}I", data, offset) if maps else ()
        offset += 4 * maps
        path = data[offset : offset + length].decode("utf-8", "surrogateescape").split("/")
        offset += length
        pins.append(Pin(path, kind, error, id_, type_, prog_id, attach_type, target_id, map_ids))
    return pins
