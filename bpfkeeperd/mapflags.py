"""The kernel's flags of map creation (``BPF_F_*``), as the manifest names them. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

NO_PREALLOC = 1 << 0
NO_COMMON_LRU = 1 << 1
NUMA_NODE = 1 << 2
RDONLY = 1 << 3
WRONLY = 1 << 4
STACK_BUILD_ID = 1 << 5
ZERO_SEED = 1 << 6
RDONLY_PROG = 1 << 7
WRONLY_PROG = 1 << 8
CLONE = 1 << 9
MMAPABLE = 1 << 10
PRESERVE_ELEMS = 1 << 11
INNER_MAP = 1 << 12
LINK = 1 << 13
VTYPE_BTF_OBJ_FD = 1 << 15
TOKEN_FD = 1 << 16
SEGV_ON_FAULT = 1 << 17
NO_USER_CONV = 1 << 18
RB_OVERWRITE = 1 << 19

OF_DESCRIPTOR = RDONLY | WRONLY
"""Properties of the descriptor that creation returns, not of the map."""


@dataclass(frozen=True, slots=True)
class MapFlag:
    bit: int
    name: str
    since: str
    """The kernel that first has it."""
    means: str


FLAGS = (
    MapFlag(NO_PREALLOC, "no_prealloc", "4.6", "memory is taken entry by entry"),
    MapFlag(NO_COMMON_LRU, "no_common_lru", "4.10", "each CPU evicts from a list of its own"),
    MapFlag(NUMA_NODE, "numa_node", "4.14", "the memory is on the node numa_node"),
    MapFlag(RDONLY, "rdonly", "4.15", "the creator's descriptor cannot write"),
    MapFlag(WRONLY, "wronly", "4.15", "the creator's descriptor cannot read"),
    MapFlag(STACK_BUILD_ID, "stack_build_id", "4.17", "user stacks as build ID and offset"),
    MapFlag(ZERO_SEED, "zero_seed", "5.0", "hashes are predictable: for tests"),
    MapFlag(RDONLY_PROG, "rdonly_prog", "5.2", "programs cannot write"),
    MapFlag(WRONLY_PROG, "wronly_prog", "5.2", "programs cannot read"),
    MapFlag(CLONE, "clone", "5.4", "an accepted socket gets its listener's storage"),
    MapFlag(MMAPABLE, "mmapable", "5.5", "user space can mmap it"),
    MapFlag(PRESERVE_ELEMS, "preserve_elems", "5.10", "slots outlive the file that filled them"),
    MapFlag(INNER_MAP, "inner_map", "5.10", "as an inner map, max_entries may differ"),
    MapFlag(LINK, "link", "6.4", "attached and updated through a link"),
    MapFlag(VTYPE_BTF_OBJ_FD, "vtype_btf_obj_fd", "6.9", "the value's type is in a module's BTF"),
    MapFlag(TOKEN_FD, "token_fd", "6.9", "created with a BPF token"),
    MapFlag(SEGV_ON_FAULT, "segv_on_fault", "6.9", "a page not there is a SIGSEGV"),
    MapFlag(NO_USER_CONV, "no_user_conv", "6.9", "arena pointers are stored as the kernel's"),
    MapFlag(RB_OVERWRITE, "rb_overwrite", "6.19", "a full buffer drops its oldest records"),
)

MAP_FLAGS = {flag.name: flag.bit for flag in FLAGS}


def flags_in(flags: int) -> Iterator[MapFlag]:
    """The known flags of a mask, lowest bit first."""
    return (flag for flag in FLAGS if flags & flag.bit)


def flag_names(flags: int) -> str:
    """``no_prealloc, numa_node``; a bit without a name as its number; ``none`` for 0."""
    unknown = flags
    for flag in FLAGS:
        unknown &= ~flag.bit
    names = [flag.name for flag in flags_in(flags)]
    return ", ".join([*names, *([f"{unknown:#x}"] if unknown else [])]) or "none"
