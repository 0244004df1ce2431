"""What user space can read of each type of map, and what entries mean without BTF. Pure."""

from dataclasses import dataclass

from bpfkeeperd.btf import Btf
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.format import Format, Style, compile_format
from bpfkeeperd.maptypes import BY_NUMBER
from bpfkeeperd.state import MapInfo
from bpfkeeperd.views import (
    Array,
    Bytes,
    Field,
    Integer,
    Null,
    Record,
    Sense,
    View,
    view_of,
)

STACK_BUILD_ID = 0x20
"""BPF_F_STACK_BUILD_ID: frames are build ID and offset."""

_TAKEN = "its values cannot be read without taking them out"
_STREAM = "it is a stream of records for one consumer, who would miss what is read here"
_OWNED = "its entries belong to {}: user space cannot list them, only a BPF program can"
UNREADABLE = {
    "perf_event_array": "the kernel does not tell which perf events are in it",
    "cgroup_array": "the kernel does not tell which cgroups are in it",
    "xskmap": "the kernel does not tell which sockets are in it",
    "queue": _TAKEN,
    "stack": _TAKEN,
    "bloom_filter": "it keeps no values, and can only be asked whether it may hold one",
    "ringbuf": _STREAM,
    "user_ringbuf": _STREAM,
    "sk_storage": _OWNED.format("sockets"),
    "inode_storage": _OWNED.format("inodes"),
    "task_storage": _OWNED.format("tasks"),
    "cgrp_storage": _OWNED.format("cgroups"),
    "arena": "it is memory without keys, which programs share",
}
"""Map types that have nothing to show, and why."""

_BATCHED = frozenset(
    {"hash", "percpu_hash", "lru_hash", "lru_percpu_hash", "array", "percpu_array", "lpm_trie"}
)
_SOCKETS = frozenset({"sockmap", "sockhash", "reuseport_sockarray"})
_COOKIE_BYTES = 8
_INDEXED = frozenset(
    {"array", "percpu_array", "prog_array", "array_of_maps", "devmap", "devmap_hash", "cpumap"}
    | {"sockmap", "reuseport_sockarray", "stack_trace", "struct_ops", "insn_array"}
)
"""Map types whose keys are numbers of 32 bits."""

_U32 = Integer(4)


def _numbers(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, 4 * place, _U32) for place, name in enumerate(names))


_VALUES: dict[str, tuple[Field, ...]] = {
    "prog_array": _numbers("program_id"),
    "array_of_maps": _numbers("map_id"),
    "hash_of_maps": _numbers("map_id"),
    "devmap": _numbers("ifindex", "program_id"),
    "devmap_hash": _numbers("ifindex", "program_id"),
    "cpumap": _numbers("queue_size", "program_id"),
    **dict.fromkeys(_SOCKETS, (Field("socket_cookie", 0, Integer(8)),)),
}
"""What the kernel answers where programs see something else. A value may have room for fewer."""

_ADDRESSES = Integer(8, sense=Sense.ADDRESS)
_BUILD_ID = (
    Field("status", 0, _U32),
    Field("build_id", 4, Bytes(20)),
    Field("offset", 24, Integer(8)),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How a map is read and shown."""

    format: Format
    value_size: int
    """Of one entry as the kernel gives it, of all CPUs; 0: values are not read."""
    batch: bool
    note: str = ""
    """Why less is shown than could be."""


def unreadable(info: MapInfo) -> str:
    """Why this map cannot be read by user space; empty when it can."""
    name = _name(info)
    if name in _SOCKETS - {"sockhash"} and info.value_size != _COOKIE_BYTES:
        return f"the kernel tells of its sockets only where value_size is {_COOKIE_BYTES}"
    return UNREADABLE.get(name, "")


def reading(info: MapInfo, btf: bytes | None, style: Style, cpus: int) -> Reading:
    """How to read a map that can be read, on a machine of so many possible CPUs."""
    name = _name(info)
    known = BY_NUMBER.get(info.type)
    per_cpu = known is not None and known.per_cpu
    size = -(-info.value_size // 8) * 8 * cpus if per_cpu else info.value_size
    if name == "sockhash" and info.value_size != _COOKIE_BYTES:
        size = 0
    note = ""

    def compiled(key: View, value: View) -> Format:
        return compile_format(style, key, info.key_size, value, info.value_size, per_cpu=per_cpu)

    plain = _key_view(name, info), _value_view(name, info, readable=size > 0)
    try:
        form = compiled(*_typed(info, btf, plain))
    except KeeperError as error:
        note = f"bytes are shown, because the map's BTF cannot be used: {error}"
        form = compiled(*plain)
    if any(info.btf[1:]) and btf is None:
        note = "bytes are shown, because the map's BTF cannot be read: it takes CAP_SYS_ADMIN"
    return Reading(form, size, name in _BATCHED, note)


def _name(info: MapInfo) -> str:
    known = BY_NUMBER.get(info.type)
    return known.name if known else ""


def _typed(info: MapInfo, btf: bytes | None, plain: tuple[View, View]) -> tuple[View, View]:
    """The views of key and value by BTF, where there is any, else the plain ones."""
    key, value = plain
    if btf is None:
        return plain
    parsed = Btf.parse(btf)
    _, key_type, value_type = info.btf
    if key_type:
        key = view_of(parsed, key_type)
    if value_type and _name(info) not in _VALUES:
        value = view_of(parsed, value_type)
    return key, value


def _key_view(name: str, info: MapInfo) -> View:
    if name in _INDEXED and info.key_size == 4:
        return _U32
    if name == "lpm_trie" and info.key_size > 4:
        data = Field("data", 4, Bytes(info.key_size - 4))
        return Record((Field("prefixlen", 0, _U32), data))
    return Bytes(info.key_size)


def _value_view(name: str, info: MapInfo, *, readable: bool) -> View:
    if not readable:
        return Null()
    if name in _VALUES:
        fields = _VALUES[name]
        return Record(tuple(field for field in fields if field.offset < info.value_size))
    if name == "stack_trace" and info.flags & STACK_BUILD_ID:
        return Array(Record(_BUILD_ID), info.value_size // 32, 32, until_zero=True)
    if name == "stack_trace":
        return Array(_ADDRESSES, info.value_size // 8, 8, until_zero=True)
    return Bytes(info.value_size)
