"""What can only be told of one map after the other: entries counted, memory; each in one call."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KernelError
from bpfkeeperd.kernel.bpf import map_info
from bpfkeeperd.kernel.places import possible_cpus
from bpfkeeperd.maptypes import (
    BY_NUMBER,
    DEVMAP_HASH,
    HASH,
    HASH_OF_MAPS,
    LPM_TRIE,
    LRU_HASH,
    LRU_PERCPU_HASH,
    PERCPU_HASH,
    SLOTTED,
    SOCKHASH,
)

COUNT_SECONDS = 10.0

_UNBOUNDED = 1 << 20
"""Entries that a map without a max_entries is taken to have at most."""
_KEYS_ARE_ENTRIES = frozenset(
    {HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH, HASH_OF_MAPS, LPM_TRIE, SOCKHASH, DEVMAP_HASH}
)
"""Where there is a key there is an entry: without batches its value need not be looked for."""


class StopFlag:
    """Tells a count that runs in another thread to give up."""

    __slots__ = ("_flag",)

    def __init__(self) -> None:
        self._flag = ffi.new("bool *")

    def set(self) -> None:
        self._flag[0] = True

    @property
    def pointer(self) -> Any:
        return self._flag


@dataclass(frozen=True, slots=True)
class CountedEntries:
    entries: int
    way: str
    """``batch``, ``next_key``, or ``nonzero``."""
    restarts: int = 0
    """How often the count began anew, because a key that it stood at was deleted."""


def count_entries(
    fd: int,
    *,
    nonzero: bool = False,
    seconds: float = COUNT_SECONDS,
    stop: StopFlag | None = None,
    batch: bool = True,
) -> CountedEntries:
    """How many entries a map has, read one by one in 0.1 to 0.5 µs; never above max_entries.

    ``nonzero``: how many slots of an array have a byte that is not zero, on any CPU. It takes
    ``seconds`` at most, and some milliseconds. Other threads run meanwhile. Without ``batch`` keys
    are walked, as they are anyway where the kernel has no batches for the type.

    Raises:
        KernelError: the map cannot be read; ETIME or ECANCELED: it was given up; ELOOP: keys are
            deleted faster than they can be walked.
    """
    info = map_info(fd)
    if nonzero and info.type not in SLOTTED:
        raise KernelError("count slots that are not zero", errno.EINVAL, "the map is no array")
    known = BY_NUMBER.get(info.type)
    per_cpu = known is not None and known.per_cpu
    of_a_cpu = -(-info.value_size // 8) * 8 if per_cpu else info.value_size
    counting = ffi.new(
        "struct keeper_counting *",
        {
            "fd": fd,
            "key_size": info.key_size,
            "value_size": of_a_cpu * (possible_cpus() if per_cpu else 1),
            "max_entries": info.max_entries or _UNBOUNDED,
            "used_size": info.value_size,
            "cpu_size": of_a_cpu,
            "nonzero": nonzero,
            "keys_only": info.type in _KEYS_ARE_ENTRIES,
            "batch": batch,
            "repeats": info.type == LPM_TRIE,
            "most_ns": int(seconds * 1e9),
            "stop": stop.pointer if stop else ffi.NULL,
        },
    )
    result = lib.keeper_count(counting)
    if result < 0:
        raise KernelError("count the map's entries", -result, _REMEDIES.get(-result, ""))
    way = "nonzero" if nonzero else "batch" if counting.batch else "next_key"
    return CountedEntries(int(counting.entries), way, int(counting.restarts))


_REMEDIES = {
    errno.EPERM: "it can only be written through this descriptor",
    errno.ETIME: "it has too many entries for the time there is",
    errno.ELOOP: "keys are deleted faster than they can be walked",
}


def maps_memory(paths: Sequence[str]) -> list[tuple[int, int] | int]:
    """For each pin the map's ID and the bytes that the kernel accounts to it, or an errno.

    EINVAL: what is pinned there is no map. One takes some 3 µs, in which other threads run.
    """
    names, _kept = c_strings(paths)
    found = ffi.new("struct keeper_memory[]", len(paths))
    lib.keeper_maps_memory(names, len(paths), found)
    return [one.error or (one.id, one.bytes) for one in found]


def c_strings(paths: Sequence[str]) -> tuple[Any, object]:
    """An array of C strings, and what keeps them."""
    texts = [ffi.new("char[]", os.fsencode(path)) for path in paths]
    return ffi.new("const char *[]", texts), texts
