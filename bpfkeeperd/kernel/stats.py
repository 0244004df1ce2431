"""What the kernel counts of programs: runs, where it is asked to, and instructions."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KernelError

_SWITCH = "/proc/sys/kernel/bpf_stats_enabled"


@dataclass(frozen=True, slots=True)
class ProgramStats:
    run_count: int
    """Since the program was loaded, while runs were counted."""
    instructions: int
    """Of the program as it runs."""
    verified: int
    """How many the verifier went through; 0 where the kernel does not tell (before 5.16)."""


def program_stats(fd: int) -> ProgramStats:
    stats = ffi.new("struct keeper_prog_stats *")
    result = lib.keeper_prog_stats(fd, stats)
    if result < 0:
        raise KernelError("read a program's statistics", -result)
    return ProgramStats(stats.run_count, stats.instructions, stats.verified)


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
        raise KernelError("have the kernel count runs of programs", -fd)


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
