"""What this process may do, and what kernel and libbpf have: asked by calls that change nothing and
leave nothing behind."""

import errno
import itertools
import os

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.capabilities import effective_of
from bpfkeeperd.kernel.trace import perf_source

_DUMMY_EVENT = (1, 9)
"""PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY: it counts nothing."""
_NOWHERE = "/bpfkeeperd_no_such_file"
_HASH, _SOCKET_FILTER = 1, 1
_KTIME_GET_COARSE_NS = 160
"""Came with 5.11, as did accounting of BPF's memory to cgroups; libbpf goes by it, too."""
_ARENA, _MMAPABLE = 33, 1 << 10


def libbpf_version() -> str:
    """Of the libbpf that runs, as ``1.1.2``."""
    return str(ffi.string(lib.libbpf_version_string()).decode()).removeprefix("v")


def effective_capabilities(process: int | None = None) -> int | None:
    """Of a process, or this one; None where /proc does not tell."""
    try:
        with open(f"/proc/{process or 'self'}/status", encoding="utf-8", errors="replace") as file:
            return effective_of(file.read())
    except OSError:
        return None


def may_open_by_id() -> bool:
    """Whether the kernel opens maps, programs and links by their IDs; 0 is no map's."""
    return bool(lib.bpf_map_get_fd_by_id(0) != -errno.EPERM)


def may_count_runs() -> bool | None:
    """Whether runs of programs may be counted; None where only turning the switch would tell."""
    fd = lib.keeper_enable_stats()
    if fd >= 0:
        os.close(fd)
        return True
    return False if fd == -errno.EPERM else None


def may_make_maps() -> bool | None:
    """Whether a map can be made, which is gone again at once; None: for another reason not."""
    result = lib.libbpf_probe_bpf_map_type(_HASH, ffi.NULL)
    if result > 0:
        return True
    return None if os.geteuid() == 0 and result < 0 else False


def has_map_type(number: int) -> bool | None:
    """Whether this kernel has maps of a type, for who may make all; None: libbpf cannot ask."""
    if number == _ARENA:
        definition = ffi.new(
            "struct keeper_map_definition *",
            {"name": ffi.NULL, "type": _ARENA, "max_entries": 1, "flags": _MMAPABLE},
        )
        fd = lib.keeper_map_create(definition)
        if fd >= 0:
            os.close(fd)
        return bool(fd >= 0)
    result = lib.libbpf_probe_bpf_map_type(number, ffi.NULL)
    return None if result < 0 else bool(result)


def accounts_memory_to_cgroups() -> bool | None:
    """Whether RLIMIT_MEMLOCK does not matter; for who may load programs."""
    result = lib.libbpf_probe_bpf_helper(_SOCKET_FILTER, _KTIME_GET_COARSE_NS, ffi.NULL)
    return None if result < 0 else bool(result)


def may_open_perf_event(source: str = "") -> bool | None:
    """Whether perf_event_open(2) is allowed: of plain events, or of a ``source`` (kprobe, uprobe),
    which is asked for a place that is not there. None: this kernel has no such source."""
    event, place = _DUMMY_EVENT, ffi.NULL
    if source:
        number = perf_source(source)
        if number is None:
            return None
        event, place = (number, 0), ffi.new("char[]", _NOWHERE.encode())
    fd = lib.keeper_perf_event_open(*event, place, 0, 0, False, -1, 0)
    if fd >= 0:
        os.close(fd)
    return fd not in (-errno.EPERM, -errno.EACCES)


def shows_kernel_addresses() -> bool | None:
    """Whether /proc/kallsyms tells addresses; None where it is not there."""
    try:
        with open("/proc/kallsyms", encoding="ascii", errors="replace") as file:
            return any(int(line.split(maxsplit=1)[0], 16) for line in itertools.islice(file, 64))
    except (OSError, ValueError):
        return None
