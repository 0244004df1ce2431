"""One table of the kernel's map types: what each demands at creation, and how it can be treated.

Rules, canonical form, creation, ``explain`` and the docs read this table; it holds data only. The
tests hold it against the running kernel, value by value.
"""

from dataclasses import dataclass
from enum import StrEnum

from bpfkeeperd.mapcolumns import (
    Btf,
    Copy,
    Inner,
    KeyBtf,
    Limit,
    Memory,
    Multiple,
    OneOf,
    Pages,
    Part,
    Range,
    Share,
    Size,
)
from bpfkeeperd.mapflags import (
    CLONE,
    INNER_MAP,
    LINK,
    MMAPABLE,
    NO_COMMON_LRU,
    NO_PREALLOC,
    NO_USER_CONV,
    NUMA_NODE,
    PRESERVE_ELEMS,
    RB_OVERWRITE,
    RDONLY,
    RDONLY_PROG,
    SEGV_ON_FAULT,
    STACK_BUILD_ID,
    VTYPE_BTF_OBJ_FD,
    WRONLY,
    WRONLY_PROG,
    ZERO_SEED,
)


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


_NONE = OneOf((0,))
_NOTHING = Part(_NONE, "")
_AS_USED = Memory()


@dataclass(frozen=True, slots=True)
class MapType:
    number: int
    """``enum bpf_map_type`` of the kernel."""
    name: str
    """As the manifest, bpftool and libbpf spell it."""
    since: str
    """The kernel that first has it."""
    purpose: str
    key: Part
    value: Part
    max_entries: Size
    flags: int
    """All that it takes, with those it needs."""
    memory: Memory = _AS_USED
    required: int = 0
    """Flags that it needs."""
    added: int = 0
    """Flags that the kernel adds."""
    together: Limit | None = None
    """The bound on key_size and value_size together."""
    extra: Part = _NOTHING
    """map_extra."""
    btf: Btf = Btf.TAKEN
    key_btf: KeyBtf = KeyBtf.ANY
    count: Count = Count.NONE
    per_cpu: bool = False
    """It has a value for each CPU."""
    share: Share = Share.ANY
    copy: Copy = Copy.NO
    filled_by: str = "programs and user space"
    inner: Inner = Inner.YES
    outer: bool = False
    """It holds maps, alike an inner map that is its pattern."""
    sized_by_cpus: bool = False
    """max_entries 0 stands for one for each possible CPU."""
    notes: tuple[str, ...] = ()

    @property
    def keyless(self) -> bool:
        return self.key.size == _NONE


HASH = 1
ARRAY = 2
PROG_ARRAY = 3
PERF_EVENT_ARRAY = 4
PERCPU_HASH = 5
PERCPU_ARRAY = 6
CGROUP_ARRAY = 8
LRU_HASH = 9
LRU_PERCPU_HASH = 10
LPM_TRIE = 11
ARRAY_OF_MAPS = 12
HASH_OF_MAPS = 13
DEVMAP = 14
CPUMAP = 16
SOCKMAP = 15
SOCKHASH = 18
QUEUE = 22
STACK = 23
DEVMAP_HASH = 25
STRUCT_OPS = 26
RINGBUF = 27
BLOOM_FILTER = 30
USER_RINGBUF = 31

SLOTTED = frozenset({ARRAY, PERCPU_ARRAY})
"""Their slots are all there from the start: what can be told is how many are not zero."""

_R = RDONLY | WRONLY
_A = _R | RDONLY_PROG | WRONLY_PROG

_ANY = Part(Range(1), "")
_INDEX = Part(OneOf((4,)), "index")
_CPU = Part(OneOf((4,)), "CPU number")
_PER_CPU = Part(Range(1, Limit.PER_CPU), "")
_STORED = Part(Range(1, 65407), "")
"""At most 2^16 - 1 with the 128 bytes that the kernel puts before it."""
_ONE_PIECE = Part(Range(1, Limit.KMALLOC), "")
_MAP = Part(OneOf((4,)), "map, written as a descriptor, read as an ID")
_SOCKET = Part(OneOf((4, 8)), "socket, written as a descriptor; of 8 bytes, read as a cookie")
_INTERFACE = Part(OneOf((4, 8)), "interface index; of 8 bytes, with a program")
_CGROUP_KEY = Part(OneOf((8, 16)), "cgroup storage key")

_ENTRIES = Range(1)
_HASH_ENTRIES = Range(1, 1 << 27)
"""2^32 - 1 bytes of buckets, of 16 bytes each."""

_POINTER = Memory(8)
_HASH_MEMORY = Memory(48, key=True, value=True, bucket=16)
_PERCPU_HASH_MEMORY = Memory(56, key=True, value=True, bucket=16)

_LRU_NOTE = "evicts silently and stays near full: fill is no alarm"
_DEVMAP_NOTE = "the kernel adds rdonly_prog"
_DRAIN_NOTE = "reading takes the entries out"


# fmt: off
def _local_storage(number: int, name: str, since: str, owner: str) -> MapType:
    return MapType(
        number, name, since, f"data that hangs on {owner} and goes with it",
        Part(OneOf((4,)), f"descriptor of {owner}"), _STORED, _NONE,
        NO_PREALLOC | CLONE, required=NO_PREALLOC, btf=Btf.REQUIRED, key_btf=KeyBtf.INT,
        count=Count.ENTRIES, filled_by=f"programs, for {owner} they meet")


MAP_TYPES = (
    MapType(
        HASH, "hash", "3.19", "a table with keys of any form",
        _ANY, _ANY, _HASH_ENTRIES, NO_PREALLOC | NUMA_NODE | _A | ZERO_SEED, _HASH_MEMORY,
        together=Limit.HASH_ELEMENT, count=Count.ENTRIES, copy=Copy.BATCH),
    MapType(
        ARRAY, "array", "3.19", "slots by index, all there from the start; also global data",
        _INDEX, Part(Range(1, (1 << 31) - 1), ""), _ENTRIES,
        NUMA_NODE | _A | MMAPABLE | INNER_MAP, Memory(value=True),
        key_btf=KeyBtf.INT, copy=Copy.BATCH, inner=Inner.SAME_SIZE),
    MapType(
        PROG_ARRAY, "prog_array", "4.2", "programs by index, for tail calls",
        _INDEX, Part(OneOf((4,)), "program, written as a descriptor, read as an ID"), _ENTRIES,
        NUMA_NODE | _R, _POINTER,
        count=Count.ENTRIES, share=Share.ALIKE, copy=Copy.KEYS,
        filled_by="user space, with programs", inner=Inner.UNSUPPORTED,
        notes=("emptied when its last pin and descriptor go, even if a program uses it",)),
    MapType(
        PERF_EVENT_ARRAY, "perf_event_array", "4.3", "perf buffers, or counters, by CPU",
        _CPU, Part(OneOf((4,)), "perf event, written as a descriptor"), _ENTRIES,
        NUMA_NODE | _R | PRESERVE_ELEMS, _POINTER,
        btf=Btf.REFUSED, count=Count.ENTRIES, filled_by="its reader, with perf events",
        sized_by_cpus=True,
        notes=("max_entries 0: one for each possible CPU",
               "without preserve_elems a slot goes with the file that filled it")),
    MapType(
        PERCPU_HASH, "percpu_hash", "4.6", "a hash with a value for each CPU",
        _ANY, _PER_CPU, _HASH_ENTRIES, NO_PREALLOC | _A | ZERO_SEED, _PERCPU_HASH_MEMORY,
        together=Limit.HASH_ELEMENT, count=Count.ENTRIES, per_cpu=True, copy=Copy.BATCH),
    MapType(
        PERCPU_ARRAY, "percpu_array", "4.6", "an array with a value for each CPU",
        _INDEX, _PER_CPU, _ENTRIES, _A, Memory(8, value=True),
        key_btf=KeyBtf.INT, per_cpu=True, copy=Copy.BATCH),
    MapType(
        7, "stack_trace", "4.6", "call stacks, by the ID that bpf_get_stackid() returns",
        Part(OneOf((4,)), "stack ID"), Part(Multiple(8, 8, Limit.STACK), "call stack"),
        Range(1, 1 << 31), NUMA_NODE | _R | STACK_BUILD_ID, Memory(16, value=True, bucket=8),
        btf=Btf.REFUSED, count=Count.ENTRIES, filled_by="programs, with bpf_get_stackid()",
        notes=("8 bytes a frame, 32 with stack_build_id",)),
    MapType(
        CGROUP_ARRAY, "cgroup_array", "4.8", "cgroups by index, to ask what is below one",
        _INDEX, Part(OneOf((4,)), "cgroup, written as a descriptor of its directory"), _ENTRIES,
        NUMA_NODE | _R, _POINTER,
        btf=Btf.REFUSED, count=Count.ENTRIES, filled_by="user space, with cgroups"),
    MapType(
        LRU_HASH, "lru_hash", "4.10", "a hash that evicts what was not used for long",
        _ANY, _ANY, _HASH_ENTRIES, NO_COMMON_LRU | NUMA_NODE | _A | ZERO_SEED, _HASH_MEMORY,
        together=Limit.HASH_ELEMENT, count=Count.ENTRIES, copy=Copy.BATCH, notes=(_LRU_NOTE,)),
    MapType(
        LRU_PERCPU_HASH, "lru_percpu_hash", "4.10", "an LRU hash with a value for each CPU",
        _ANY, _PER_CPU, _HASH_ENTRIES, NO_COMMON_LRU | _A | ZERO_SEED, _PERCPU_HASH_MEMORY,
        together=Limit.HASH_ELEMENT, count=Count.ENTRIES, per_cpu=True, copy=Copy.BATCH,
        notes=(_LRU_NOTE,)),
    MapType(
        LPM_TRIE, "lpm_trie", "4.11", "longest prefix match, as in a routing table",
        Part(Range(5, 260, "EINVAL"), "prefix length in 4 bytes, then the prefix"),
        Part(Range(1, Limit.TRIE_VALUE, "EINVAL"), ""), _ENTRIES,
        NO_PREALLOC | NUMA_NODE | _A, required=NO_PREALLOC,
        key_btf=KeyBtf.STRUCT, count=Count.ENTRIES, copy=Copy.BATCH),
    MapType(
        ARRAY_OF_MAPS, "array_of_maps", "4.12", "maps by index",
        _INDEX, _MAP, _ENTRIES, NUMA_NODE | _R, _POINTER,
        btf=Btf.REFUSED, count=Count.ENTRIES, copy=Copy.KEYS,
        filled_by="user space, with maps", inner=Inner.NESTED, outer=True),
    MapType(
        HASH_OF_MAPS, "hash_of_maps", "4.12", "maps by keys of any form",
        _ANY, _MAP, _HASH_ENTRIES, NO_PREALLOC | NUMA_NODE | _A | ZERO_SEED, _HASH_MEMORY,
        together=Limit.HASH_ELEMENT, btf=Btf.REFUSED, count=Count.ENTRIES, copy=Copy.KEYS,
        filled_by="user space, with maps", inner=Inner.NESTED, outer=True),
    MapType(
        DEVMAP, "devmap", "4.14", "interfaces by index, for XDP redirection",
        _INDEX, _INTERFACE, _ENTRIES, NUMA_NODE | _R, _POINTER,
        added=RDONLY_PROG, btf=Btf.REFUSED, count=Count.ENTRIES, copy=Copy.KEYS,
        filled_by="user space, with interfaces", notes=(_DEVMAP_NOTE,)),
    MapType(
        SOCKMAP, "sockmap", "4.14", "sockets by index, for redirection between them",
        _INDEX, _SOCKET, _ENTRIES, NUMA_NODE | _R, _POINTER,
        btf=Btf.REFUSED, count=Count.ENTRIES, filled_by="programs and user space, with sockets"),
    MapType(
        CPUMAP, "cpumap", "4.15", "CPUs, for XDP redirection",
        _CPU, Part(OneOf((4, 8)), "queue size; of 8 bytes, with a program"),
        Range(1, Limit.KERNEL_CPUS), NUMA_NODE, _POINTER,
        btf=Btf.REFUSED, count=Count.ENTRIES, copy=Copy.KEYS,
        filled_by="user space, with queue sizes"),
    MapType(
        17, "xskmap", "4.18", "AF_XDP sockets by index, for XDP redirection",
        _INDEX, Part(OneOf((4,)), "AF_XDP socket, written as a descriptor"), _ENTRIES,
        NUMA_NODE | _R, _POINTER,
        btf=Btf.REFUSED, count=Count.ENTRIES, filled_by="user space, with AF_XDP sockets",
        inner=Inner.SAME_SIZE),
    MapType(
        SOCKHASH, "sockhash", "4.18", "sockets by keys of any form",
        Part(Range(1, 512), ""), _SOCKET, Range(1, 1 << 27, "EINVAL"),
        NUMA_NODE | _R, Memory(bucket=16),
        btf=Btf.REFUSED, count=Count.ENTRIES, filled_by="programs and user space, with sockets"),
    MapType(
        19, "cgroup_storage", "4.19", "data of a program at a cgroup (deprecated: cgrp_storage)",
        _CGROUP_KEY, _STORED, _NONE, NUMA_NODE | _A,
        key_btf=KeyBtf.CGROUP, filled_by="the kernel, when a program is attached to a cgroup",
        inner=Inner.UNSUPPORTED),
    MapType(
        20, "reuseport_sockarray", "4.19", "sockets of a reuseport group by index",
        _INDEX, _SOCKET, _ENTRIES, NUMA_NODE | _A, _POINTER,
        count=Count.ENTRIES, filled_by="user space, with sockets"),
    MapType(
        21, "percpu_cgroup_storage", "4.20", "cgroup_storage, a value for each CPU (deprecated)",
        _CGROUP_KEY, _PER_CPU, _NONE, NUMA_NODE | _A,
        key_btf=KeyBtf.CGROUP, per_cpu=True,
        filled_by="the kernel, when a program is attached to a cgroup", inner=Inner.UNSUPPORTED),
    MapType(
        QUEUE, "queue", "4.20", "values, first in first out",
        _NOTHING, _ONE_PIECE, _ENTRIES, NUMA_NODE | _A, Memory(value=True),
        btf=Btf.REFUSED, count=Count.ENTRIES, notes=(_DRAIN_NOTE,)),
    MapType(
        STACK, "stack", "4.20", "values, last in first out",
        _NOTHING, _ONE_PIECE, _ENTRIES, NUMA_NODE | _A, Memory(value=True),
        btf=Btf.REFUSED, count=Count.ENTRIES, notes=(_DRAIN_NOTE,)),
    _local_storage(24, "sk_storage", "5.2", "a socket"),
    MapType(
        DEVMAP_HASH, "devmap_hash", "5.4", "interfaces by any number, for XDP redirection",
        Part(OneOf((4,)), "number"), _INTERFACE, Range(1, 1 << 31, "EINVAL"),
        NUMA_NODE | _R, Memory(bucket=8),
        added=RDONLY_PROG, btf=Btf.REFUSED, count=Count.ENTRIES, copy=Copy.KEYS,
        filled_by="user space, with interfaces", notes=(_DEVMAP_NOTE,)),
    MapType(
        STRUCT_OPS, "struct_ops", "5.6", "functions of the kernel that programs replace",
        Part(OneOf((4,)), "index, always 0"), Part(Range(1), "the kernel's struct"),
        OneOf((1,)), LINK | VTYPE_BTF_OBJ_FD,
        share=Share.NONE, filled_by="libbpf, with the programs of its object",
        inner=Inner.UNSUPPORTED, notes=("only an object can declare it",)),
    MapType(
        RINGBUF, "ringbuf", "5.8", "records for user space, one buffer for all CPUs",
        _NOTHING, _NOTHING, Pages(), NUMA_NODE | RB_OVERWRITE, Memory(1),
        btf=Btf.REFUSED, count=Count.BYTES, filled_by="programs, with records"),
    _local_storage(28, "inode_storage", "5.10", "an inode"),
    _local_storage(29, "task_storage", "5.11", "a task"),
    MapType(
        BLOOM_FILTER, "bloom_filter", "5.16", "whether a value was ever put in: no, or perhaps",
        _NOTHING, _ONE_PIECE, _ENTRIES, NUMA_NODE | _A | ZERO_SEED,
        extra=Part(Range(0, 15, "EINVAL"), "number of hash functions, 0 for 5"),
        count=Count.ESTIMATE),
    MapType(
        USER_RINGBUF, "user_ringbuf", "6.1", "records from user space for programs",
        _NOTHING, _NOTHING, Pages(), NUMA_NODE, Memory(1),
        btf=Btf.REFUSED, count=Count.BYTES, filled_by="user space, with records"),
    _local_storage(32, "cgrp_storage", "6.2", "a cgroup"),
    MapType(
        33, "arena", "6.9", "memory that programs and user space share, pointers included",
        _NOTHING, _NOTHING, Range(1, Limit.ARENA_PAGES),
        MMAPABLE | SEGV_ON_FAULT | NO_USER_CONV, required=MMAPABLE,
        extra=Part(Multiple(Limit.PAGE, 0), "address at which it is mapped, 0 for any"),
        btf=Btf.REFUSED,
        notes=("max_entries counts pages; they are taken when touched",)),
    MapType(
        34, "insn_array", "6.19", "addresses of instructions, for indirect jumps",
        _INDEX, Part(OneOf((16,)), "offset of an instruction"), _ENTRIES, 0, Memory(value=True),
        share=Share.ONE, filled_by="user space, before the program is loaded",
        inner=Inner.UNSUPPORTED, notes=("frozen before the program is loaded",)),
)
# fmt: on

BY_NUMBER = {map_type.number: map_type for map_type in MAP_TYPES}
BY_NAME = {map_type.name: map_type for map_type in MAP_TYPES}


def type_name(number: int) -> str:
    """The name of a map type, ``type 99`` for one this version does not know."""
    known = BY_NUMBER.get(number)
    return known.name if known else f"type {number}"


def a_type(name: str) -> str:
    """``an LRU_HASH``: a type's name with the article that it is spoken with."""
    spelled_out = name.startswith(("lru", "lpm", "xsk", "sk_"))
    return f"{'an' if spelled_out or name[0] in 'aeio' else 'a'} {name.upper()}"
