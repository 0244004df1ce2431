"""What a manifest wants in a map, written into it, and compared with what is there.

An entry is written by one system call, and only where it differs: whoever reads the map never
sees it half done.
"""

import errno
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import assert_never

from bpfkeeperd import kernel
from bpfkeeperd.attach import cgroup_path
from bpfkeeperd.cgroupslots import SLOTS_MAX, cgroup_ids
from bpfkeeperd.entries import (
    CgroupRef,
    Content,
    CpuRef,
    InterfaceRef,
    MapRef,
    ProgramRef,
)
from bpfkeeperd.errors import KeeperError, KernelError, errno_text
from bpfkeeperd.maptypes import BY_NUMBER, type_name
from bpfkeeperd.state import MapSpec


@dataclass(frozen=True, slots=True)
class Resolver:
    """Who knows the programs and maps that entries name; descriptors stay the callee's."""

    program_fd: Callable[[str, str], int]
    """Object and program to the descriptor of what is loaded; a KeeperError where nothing is."""
    map_fd: Callable[[str], int]
    """Pin name to the descriptor of the kept map; a KeeperError where there is none."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """The value of an entry as the kernel takes it, and as it gives it back."""

    written: bytes
    read: bytes | None
    """None where bpf(2) does not give it back."""
    cgroup_id: int = 0


def fill(fd: int, spec: MapSpec, contents: Sequence[Content], resolver: Resolver) -> None:
    """Writes the entries that are not there, or differ.

    Of types whose values bpf(2) does not give back (CGROUP_ARRAY, QUEUE, STACK) all are written.

    Raises:
        KeeperError: the first entry that cannot be written; those before it are.
    """
    keys = _keys(fd, spec)
    for content in contents:
        try:
            with _ready(content, spec, resolver) as ready:
                if _there(fd, spec, content, ready, keys) is not _SAME:
                    _write(fd, spec, content, ready.written)
        except KeeperError as error:
            raise _failed(content, spec, error) from None


def astray(
    fd: int, spec: MapSpec, contents: Sequence[Content], resolver: Resolver
) -> dict[int, str]:
    """The places of the contents that are not in the map as they should be, and how they are.

    Nothing is said of values that cannot be read. An entry that names what is not there (an
    interface that is gone) differs.
    """
    found = {}
    keys = _keys(fd, spec)
    cgroups = _cgroups(fd, spec)
    for place, content in enumerate(contents):
        try:
            with _ready(content, spec, resolver) as ready:
                if isinstance(content.value, CgroupRef):
                    how = _cgroup_there(content, ready, cgroups)
                else:
                    how = _there(fd, spec, content, ready, keys)
        except KeeperError as error:
            how = str(error)
        if how not in (_SAME, _UNKNOWN):
            found[place] = how
    return found


_SAME = "it is as it should be"
_UNKNOWN = "it cannot be read"
_WRITE = "update a map entry"
"""The action of `kernel.map_update`, which errors of entries put better."""


def _keys(fd: int, spec: MapSpec) -> frozenset[bytes] | None:
    """All keys of an LPM_TRIE, where a look-up finds the longest prefix and not the very entry."""
    if type_name(spec.type) != "lpm_trie":
        return None
    return frozenset(kernel.map_keys(fd, spec.key_size))


def _cgroups(fd: int, spec: MapSpec) -> Mapping[int, int] | None:
    """Slot to cgroup ID of a CGROUP_ARRAY; None where they cannot be known."""
    return cgroup_ids(kernel.map_info(fd).id) if type_name(spec.type) == "cgroup_array" else None


def _cgroup_there(content: Content, ready: _Ready, cgroups: Mapping[int, int] | None) -> str:
    """As `_there`, for a cgroup. One that was removed and made again is another."""
    slot = int.from_bytes(content.key or b"", sys.byteorder)
    if cgroups is None or slot >= SLOTS_MAX:
        return _UNKNOWN
    if slot not in cgroups:
        return "it is not there"
    return _SAME if ready.cgroup_id == cgroups[slot] else "its value is another"


def _there(
    fd: int, spec: MapSpec, content: Content, ready: _Ready, keys: frozenset[bytes] | None
) -> str:
    """How what is in the map relates to what should be."""
    if ready.read is None:
        return _UNKNOWN
    if content.key is None:
        return _SAME if kernel.map_contains(fd, ready.read) else "it is not there"
    if keys is not None and content.key not in keys:
        return "it is not there"
    size, count = spec.value_size, 1
    if _per_cpu(spec):
        size, count = (spec.value_size + 7) // 8 * 8, kernel.possible_cpus()
    stored = kernel.map_lookup(fd, content.key, size * count)
    if stored is None:
        return "it is not there"
    each = {stored[start : start + spec.value_size] for start in range(0, size * count, size)}
    return _SAME if each == {ready.read} else "its value is another"


def _write(fd: int, spec: MapSpec, content: Content, value: bytes) -> None:
    if _per_cpu(spec):  # the kernel reads a value for each CPU, padded to 8 bytes
        value = value.ljust((spec.value_size + 7) // 8 * 8, b"\0") * kernel.possible_cpus()
    kernel.map_update(fd, content.key, value)


def _per_cpu(spec: MapSpec) -> bool:
    known = BY_NUMBER.get(spec.type)
    return bool(known and known.per_cpu)


@contextmanager
def _ready(content: Content, spec: MapSpec, resolver: Resolver) -> Iterator[_Ready]:
    """The value of an entry; descriptors and the network namespace hold for the block."""
    match content.value:
        case bytes() as value:
            taken_out = type_name(spec.type) in ("queue", "stack")
            yield _Ready(value, None if taken_out else value)
        case ProgramRef() as ref:
            yield _of_program(resolver, ref)
        case MapRef(name=name):
            fd = resolver.map_fd(name)
            yield _Ready(_u32(fd), _u32(kernel.map_info(fd).id))
        case CpuRef(queue_size=queue_size, program=run):
            yield _with_program(resolver, spec, queue_size, run)
        case InterfaceRef(name=name, netns=netns, program=run):
            # The kernel looks the index up in the namespace of whoever writes it.
            with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
                yield _with_program(resolver, spec, kernel.interface_index(name), run)
        case CgroupRef(path=path):
            directory = cgroup_path(path, kernel.cgroup2_mount()) or path
            try:
                cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise KernelError(f"open cgroup {directory}", error.errno or 0) from None
            with kernel.holding(cgroup):
                yield _Ready(_u32(cgroup), None, os.fstat(cgroup).st_ino)
        case _:
            assert_never(content.value)


def _u32(number: int) -> bytes:
    return struct.pack("=I", number)


def _of_program(resolver: Resolver, ref: ProgramRef) -> _Ready:
    fd = resolver.program_fd(ref.object, ref.program)
    return _Ready(_u32(fd), _u32(kernel.program_info(fd).id))


def _with_program(resolver: Resolver, spec: MapSpec, number: int, ref: ProgramRef | None) -> _Ready:
    """A number, and a program where the value has room for one."""
    run = _of_program(resolver, ref) if ref else _Ready(_u32(0), _u32(0))
    head = _u32(number)
    return _Ready(
        (head + run.written)[: spec.value_size], (head + (run.read or b""))[: spec.value_size]
    )


def _failed(content: Content, spec: MapSpec, error: KeeperError) -> KeeperError:
    what = f"cannot write entry {content.text} of map {spec.name}"
    why, remedy = str(error), ""
    if isinstance(error, KernelError) and error.action == _WRITE:
        why, remedy = errno_text(error.errno), _remedy(spec, error.errno)
    where = f"it is at {content.mark}" if content.mark.file else ""
    return KeeperError(": ".join(part for part in (what, why, remedy, where) if part))


def _remedy(spec: MapSpec, number: int) -> str:
    """What may help against an errno of an update."""
    match type_name(spec.type), number:
        case _, errno.E2BIG:
            return "the map is full, or the key is outside of it: raise max_entries"
        case _, errno.EPERM:
            return "its flags forbid user space to write, or it is frozen"
        case "prog_array", errno.EINVAL:
            return "all programs of a prog_array are of one type and use it alike"
        case (("array_of_maps" | "hash_of_maps"), errno.EINVAL):
            return "the map differs from the inner map that was declared"
        case "devmap" | "devmap_hash", errno.EINVAL:
            return 'a program in a devmap has the section "xdp/devmap"'
        case "cpumap", errno.ENOMEM:  # the kernel's answer to a program that does not fit, too
            return 'a program in a cpumap has the section "xdp/cpumap"'
        case "cpumap", errno.ENODEV:
            return "this machine has no such CPU"
        case _:
            return ""
