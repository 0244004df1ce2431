"""The memory that maps take: at once, and with their entries. Pure."""

from bpfkeeperd.compare import Machine, canonical
from bpfkeeperd.mapflags import NO_PREALLOC
from bpfkeeperd.maptypes import (
    BLOOM_FILTER,
    BY_NUMBER,
    DEVMAP,
    DEVMAP_HASH,
    LPM_TRIE,
    SOCKHASH,
)
from bpfkeeperd.state import MapSpec

_GROWING = frozenset({LPM_TRIE, SOCKHASH, DEVMAP, DEVMAP_HASH})


def up_front_bytes(spec: MapSpec, machine: Machine) -> int:
    """The memory that creation takes at once; what comes with the entries is not in it."""
    known = BY_NUMBER[spec.type]
    memory, entries = known.memory, canonical(spec, machine).max_entries
    if spec.type == BLOOM_FILTER:  # 7/5 is about 1 / ln 2
        return _power_of_two(entries * (spec.map_extra or 5) * 7 // 5) // 8
    buckets = memory.bucket * _power_of_two(entries)
    if spec.flags & known.flags & NO_PREALLOC:
        return buckets
    value = spec.value_size if known.keyless else -(-spec.value_size // 8) * 8
    values = value * (machine.possible_cpus if known.per_cpu else 1)
    key = -(-spec.key_size // 8) * 8
    entry = memory.fixed + (key if memory.key else 0) + (values if memory.value else 0)
    return buckets + entries * entry


def memory_changes(map_type: int, flags: int) -> bool:
    """Whether what the kernel accounts to a map depends on what is in it just now."""
    return flags & NO_PREALLOC != 0 or map_type in _GROWING or map_type not in BY_NUMBER


def memory_text(number: int) -> str:
    """``16.0 GiB``."""
    amount, units = float(number), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        del units[0]
    return f"{amount:.1f} {units[0]}" if units[0] != "bytes" else f"{number} bytes"


def _power_of_two(number: int) -> int:
    """The next one."""
    return 1 << max(number - 1, 0).bit_length()
