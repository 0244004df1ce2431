"""What the kernel counts of programs: runs, where it is asked to, instructions, memory."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KernelError
from bpfkeeperd.kernel.bpf import needs_admin
from bpfkeeperd.kernel.figures import c_strings
from bpfkeeperd.state import ProgramFigures

_SWITCH = "/proc/sys/kernel/bpf_stats_enabled"


def program_stats(fd: int) -> ProgramFigures:
    stats = ffi.new("struct keeper_prog_stats *")
    result = lib.keeper_prog_stats(fd, stats)
    if result < 0:
        raise KernelError("read a program's statistics", -result)
    return _figures(stats)


def program_figures(paths: Sequence[str], *, memory: bool = False) -> list[ProgramFigures | int]:
    """Of the programs pinned at these paths; an errno where there is none (EINVAL: another thing).

    One takes some 3 µs, with its memory 5, in which other threads run.
    """
    names, _kept = c_strings(paths)
    found = ffi.new("struct keeper_prog_stats[]", len(paths))
    lib.keeper_pinned_prog_stats(names, len(paths), memory, found)
    return [one.error or _figures(one) for one in found]


def _figures(stats: Any) -> ProgramFigures:
    return ProgramFigures(
        stats.id,
        stats.type,
        stats.instructions,
        stats.verified,
        stats.run_count,
        stats.run_time_ns,
        stats.misses,
        stats.load_time_ns,
        stats.memory_bytes,
    )


def statistics_enabled() -> bool:
    """Whether runs are counted for the whole machine, by the switch that anybody can see.

    Nobody can see who else has them counted for a while, as `counting_runs` does.
    """
    try:
        with open(_SWITCH, encoding="ascii") as file:
            return file.read().strip() not in ("", "0")
    except OSError:
        return False  # before 5.1


@contextmanager
def counting_runs() -> Iterator[None]:
    """Has the kernel count runs of programs meanwhile; it costs each run some nanoseconds.

    Raises:
        KernelError: it cannot, or not for this user.
    """
    fd = lib.keeper_enable_stats()
    if fd >= 0:
        try:
            yield
        finally:
            os.close(fd)
    elif fd == -errno.EINVAL:  # before 5.8 there is a switch for the whole machine
        before = _switch("1")
        try:
            yield
        finally:
            _switch(before)
    else:
        raise KernelError("have the kernel count runs of programs", -fd, needs_admin(fd))


def _switch(value: str) -> str:
    """Sets the switch; returns how it was."""
    try:
        with open(_SWITCH, encoding="ascii") as file:
            before = file.read().strip()
        if before != value:
            with open(_SWITCH, "w", encoding="ascii") as file:
                file.write(value)
    except OSError as error:
        action = "have the kernel count runs of programs"
        remedy = f"it takes Linux 5.8, or {_SWITCH}"
        raise KernelError(action, error.errno or errno.EIO, remedy) from None
    return before
