"""Everything pinned below a directory, read in one call."""

import os
import struct
from enum import IntEnum
from typing import NamedTuple

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KernelError

# struct keeper_pin of _build/libbpf.h
_PIN = struct.Struct("=6IQ4I16s8s")


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
    """Links: see `LinkInfo.target_id`."""
    map_ids: tuple[int, ...]
    """Programs: the maps in use."""
    name: str
    """Programs: at most 15 characters."""
    tag: str
    """Programs: 16 hex digits."""
    detail: str
    """Links: see `LinkInfo.detail`."""


def scan(root: str, depth: int, kind: PinKind) -> list[Pin]:
    """All pins and empty directories below ``root``; nothing when it is not there.

    Pins are read as of the given kind. PROGRAM and LINK are for directories where nobody else pins;
    with MAP, which may stand anywhere, what is none is OTHER.
    """
    stream, size = ffi.new("char **"), ffi.new("size_t *")
    result = lib.keeper_scan(os.fsencode(root), depth, kind, stream, size)
    try:
        data = bytes(ffi.buffer(stream[0], size[0])) if size[0] else b""
    finally:
        lib.free(stream[0])
    if result < 0:
        raise KernelError(f"read {os.fsdecode(data) or root}", -result)
    return parse_pins(data)


def parse_pins(data: bytes) -> list[Pin]:
    """The records of a stream that C made."""
    pins = []
    offset = 0
    while offset < len(data):
        head = _PIN.unpack_from(data, offset)
        kind, error, id_, type_, prog_id, attach_type, target_id = head[:7]
        maps, path_size, detail_size, _, name, tag = head[7:]
        offset += _PIN.size
        map_ids = struct.unpack_from(f"={maps}I", data, offset) if maps else ()
        offset += 4 * maps
        path = data[offset : offset + path_size].decode("utf-8", "surrogateescape").split("/")
        offset += path_size
        detail = data[offset : offset + detail_size].decode("utf-8", "surrogateescape")
        offset += detail_size
        pin = (path, kind, error, id_, type_, prog_id, attach_type, target_id, map_ids)
        pins.append(Pin(*pin, name.rstrip(b"\0").decode("utf-8", "replace"), tag.hex(), detail))
    return pins
