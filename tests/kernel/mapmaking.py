"""Maps made exactly as they are defined, with no library in between that puts anything right."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.btfbuilder import BtfBuilder
from bpfkeeperd.btfformat import Member
from bpfkeeperd.errors import KernelError
from bpfkeeperd.mapcolumns import Btf, KeyBtf, Multiple, OneOf, Pages, Range, Size
from bpfkeeperd.maptypes import BY_NUMBER, HASH, MapType
from bpfkeeperd.state import MapSpec

MACHINE = kernel.machine()
BtfIds = tuple[int, int, int]
"""A descriptor of BTF, and the type IDs of a key and a value."""


def is_in_kernel(map_type: MapType) -> bool:
    """Whether the running kernel has a type: the names of the enumeration are in its BTF."""
    name = f"\0BPF_MAP_TYPE_{map_type.name.upper()}\0"
    return name.encode() in Path("/sys/kernel/btf/vmlinux").read_bytes()


def smallest(size: Size) -> int:
    match size:
        case OneOf(numbers):
            return numbers[0]
        case Range(low=low) | Multiple(low=low):
            return low
        case Pages():
            return MACHINE.page_size


def legal(map_type: MapType) -> MapSpec:
    """The smallest definition of a type that breaks no rule."""
    spec = MapSpec(
        "ruled",
        map_type.number,
        smallest(map_type.key.size),
        smallest(map_type.value.size),
        smallest(map_type.max_entries),
        flags=map_type.required,
        inner=MapSpec("inside", HASH, 4, 4, 1) if map_type.outer else None,
    )
    if map_type.btf is Btf.REQUIRED:
        return replace(spec, key_layout="0:32:int:", value_layout="0:8:int:")
    return spec


@contextmanager
def btf(key: KeyBtf, key_size: int, value_size: int) -> Iterator[BtfIds]:
    """BTF for a map, as wide as key and value are; what is 0 bytes wide has no type."""
    builder = BtfBuilder()
    byte = builder.add_int("byte", 1)
    value_id = builder.add_array(byte, value_size) if value_size else 0
    key_id = _key_type(builder, key, key_size, byte) if key_size else 0
    with kernel.holding(kernel.btf_load(builder.data())) as fd:
        yield fd, key_id, value_id


def _key_type(builder: BtfBuilder, key: KeyBtf, size: int, byte: int) -> int:
    array = builder.add_array(byte, size)
    match key:
        case KeyBtf.INT if size in (1, 2, 4, 8, 16):
            return builder.add_int("number", size)
        case KeyBtf.STRUCT:
            return builder.add_struct("key", size, (Member("bytes", array, 0, 0),))
        case KeyBtf.CGROUP if size == 8:
            return builder.add_int("id", 8)
        case KeyBtf.CGROUP if size == 16:
            members = (
                Member("cgroup_inode_id", builder.add_int("id", 8), 0, 0),
                Member("attach_type", builder.add_int("type", 4), 64, 0),
            )
            return builder.add_struct("bpf_cgroup_storage_key", 16, members)
    return array


@contextmanager
def made(spec: MapSpec, key: KeyBtf | None = None) -> Iterator[int]:
    """A map by its definition, with BTF if that is asked for or the type needs it."""
    known = BY_NUMBER[spec.type]
    with ExitStack() as stack:
        inner = stack.enter_context(made(spec.inner)) if spec.inner else 0
        ids: BtfIds = (0, 0, 0)
        if key is None and known.btf is Btf.REQUIRED and spec.key_layout is not None:
            key = known.key_btf
        if key is not None:
            ids = stack.enter_context(btf(key, spec.key_size, spec.value_size))
        fd = kernel.map_create(
            spec.type,
            spec.name,
            spec.key_size,
            spec.value_size,
            spec.max_entries,
            flags=spec.flags,
            map_extra=spec.map_extra,
            numa_node=spec.numa_node,
            inner_fd=inner,
            btf=ids,
        )
        stack.callback(os.close, fd)
        yield fd


def refusal(spec: MapSpec, key: KeyBtf | None = None) -> int:
    """The errno with which the kernel refuses a map; 0 when it makes it."""
    try:
        with made(spec, key):
            return 0
    except KernelError as error:
        return error.errno
