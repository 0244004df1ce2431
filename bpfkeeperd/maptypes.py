"""One table of the kernel's map types: what each is called and how bpfkeeperd treats it."""

from dataclasses import dataclass
from enum import StrEnum


class Count(StrEnum):
    """What the fullness of a map of this type means."""

    ENTRIES = "entries"
    """Entries in use, of max_entries."""
    BYTES = "bytes"
    """Bytes not yet consumed, of max_entries."""
    ESTIMATE = "estimate"
    """Entries in use, of max_entries, deduced from what they left behind."""
    NONE = "none"
    """Every slot exists, or the notion does not apply."""


@dataclass(frozen=True, slots=True)
class MapType:
    number: int
    """``enum bpf_map_type`` of the kernel."""
    name: str
    """As the manifest, bpftool and libbpf spell it."""
    count: Count = Count.NONE
    per_cpu: bool = False


HASH = 1
PROG_ARRAY = 3
PERF_EVENT_ARRAY = 4
PERCPU_HASH = 5
LRU_HASH = 9
LRU_PERCPU_HASH = 10
LPM_TRIE = 11
ARRAY_OF_MAPS = 12
HASH_OF_MAPS = 13
DEVMAP = 14
SOCKHASH = 18
QUEUE = 22
STACK = 23
DEVMAP_HASH = 25
RINGBUF = 27
USER_RINGBUF = 31

MAP_TYPES = (
    MapType(HASH, "hash", Count.ENTRIES),
    MapType(2, "array"),
    MapType(PROG_ARRAY, "prog_array", Count.ENTRIES),
    MapType(PERF_EVENT_ARRAY, "perf_event_array", Count.ENTRIES),
    MapType(PERCPU_HASH, "percpu_hash", Count.ENTRIES, per_cpu=True),
    MapType(6, "percpu_array", per_cpu=True),
    MapType(7, "stack_trace"),
    MapType(8, "cgroup_array", Count.ENTRIES),
    MapType(LRU_HASH, "lru_hash", Count.ENTRIES),
    MapType(LRU_PERCPU_HASH, "lru_percpu_hash", Count.ENTRIES, per_cpu=True),
    MapType(LPM_TRIE, "lpm_trie", Count.ENTRIES),
    MapType(ARRAY_OF_MAPS, "array_of_maps", Count.ENTRIES),
    MapType(HASH_OF_MAPS, "hash_of_maps", Count.ENTRIES),
    MapType(DEVMAP, "devmap", Count.ENTRIES),
    MapType(15, "sockmap", Count.ENTRIES),
    MapType(16, "cpumap", Count.ENTRIES),
    MapType(17, "xskmap", Count.ENTRIES),
    MapType(SOCKHASH, "sockhash", Count.ENTRIES),
    MapType(19, "cgroup_storage"),
    MapType(20, "reuseport_sockarray", Count.ENTRIES),
    MapType(21, "percpu_cgroup_storage", per_cpu=True),
    MapType(QUEUE, "queue", Count.ENTRIES),
    MapType(STACK, "stack", Count.ENTRIES),
    MapType(24, "sk_storage", Count.ENTRIES),
    MapType(DEVMAP_HASH, "devmap_hash", Count.ENTRIES),
    MapType(26, "struct_ops"),
    MapType(RINGBUF, "ringbuf", Count.BYTES),
    MapType(28, "inode_storage", Count.ENTRIES),
    MapType(29, "task_storage", Count.ENTRIES),
    MapType(30, "bloom_filter", Count.ESTIMATE),
    MapType(USER_RINGBUF, "user_ringbuf", Count.BYTES),
    MapType(32, "cgrp_storage", Count.ENTRIES),
    MapType(33, "arena"),
    MapType(34, "insn_array"),
)

BY_NUMBER = {map_type.number: map_type for map_type in MAP_TYPES}
BY_NAME = {map_type.name: map_type for map_type in MAP_TYPES}


def type_name(number: int) -> str:
    """The name of a map type, ``type 99`` for one this version does not know."""
    known = BY_NUMBER.get(number)
    return known.name if known else f"type {number}"
