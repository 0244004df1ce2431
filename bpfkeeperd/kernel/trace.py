"""Perf events, and the links of tracing: each a thin function that raises `KernelError`."""

import functools
import os
import re
from collections.abc import Sequence

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KernelError
from bpfkeeperd.kernel.bpf import checked

_PERF_SOURCES = "/sys/bus/event_source/devices"


def perf_event_open(
    event: tuple[int, int],
    *,
    place: tuple[str, int] | None = None,
    frequency: int = 0,
    period: int = 0,
    pid: int = -1,
    cpu: int = -1,
) -> int:
    """perf_event_open(2), by type and config; ``place`` is a function or a binary with an offset,
    for those types that take one."""
    text = ffi.new("char[]", os.fsencode(place[0])) if place else ffi.NULL
    result = lib.keeper_perf_event_open(
        *event, text, place[1] if place else 0, frequency or period, bool(frequency), pid, cpu
    )
    return checked(result, "open a perf event")


def perf_link(prog_fd: int, event_fd: int, cookie: int = 0) -> int:
    """Has a perf event run a program. The link holds the event, whose descriptor can be closed."""
    return checked(lib.keeper_perf_link(prog_fd, event_fd, cookie), "attach a program")


def iter_link(prog_fd: int, map_fd: int | None = None) -> int:
    """A link whose readers have an iterator program run, through a map if it takes one."""
    number = -1 if map_fd is None else map_fd
    return checked(lib.keeper_iter_link(prog_fd, number), "attach a program")


def kprobe_multi_link(prog_fd: int, symbols: Sequence[str], *, at_return: bool) -> int:
    """Attaches a program to several functions of the kernel."""
    texts = [ffi.new("char[]", symbol.encode()) for symbol in symbols]
    names = ffi.new("const char *[]", texts)
    result = lib.keeper_kprobe_multi_link(prog_fd, names, len(symbols), at_return)
    return checked(result, "attach a program")


def uprobe_multi_link(
    prog_fd: int, path: str, offsets: Sequence[int], *, cookie: int, pid: int, at_return: bool
) -> int:
    """Attaches a program to several places of a binary; ``pid`` 0: of all processes."""
    places = ffi.new("uint64_t[]", list(offsets))
    result = lib.keeper_uprobe_multi_link(
        prog_fd, os.fsencode(path), places, cookie, len(offsets), pid, at_return
    )
    return checked(result, "attach a program")


def place_number(device: int, inode: int, offsets: Sequence[int]) -> int:
    """What stands for places in this very file (`LinkInfo.target_id` of a uprobe's link)."""
    number: int = lib.keeper_place(
        device, inode, ffi.new("uint64_t[]", list(offsets)), len(offsets)
    )
    return number


def perf_source(name: str) -> int | None:
    """The type of perf events that a part of the kernel offers, as ``kprobe``; None when this one
    does not."""
    try:
        with open(f"{_PERF_SOURCES}/{name}/type", encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return None


def return_bit(name: str) -> int:
    """What ``config`` holds of a probe at a function's return."""
    with open(f"{_PERF_SOURCES}/{name}/format/retprobe", encoding="ascii") as file:
        found = re.fullmatch(r"config:(\d+)", file.read().strip())
    return 1 << int(found[1]) if found else 1


def tracefs_mount() -> str | None:
    """Where tracefs is mounted; below debugfs it is by itself as soon as somebody looks."""
    usual = "/sys/kernel/tracing"
    if os.path.exists(f"{usual}/events"):
        return usual
    with open("/proc/self/mountinfo", "rb") as mounts:  # a carriage return is part of a path
        for line in mounts:
            fields, _, rest = os.fsdecode(line).partition(" - ")
            place = fields.split(" ")[4]
            place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place)
            if rest.startswith("tracefs "):
                return place
            if rest.startswith("debugfs ") and os.path.exists(f"{place}/tracing/events"):
                return f"{place}/tracing"
    return None


@functools.cache
def syscall_prefix() -> str:
    """What stands before a system call's name in that of its function: ``__x64_sys_``."""
    machine = os.uname().machine
    known = {"x86_64": "x64", "aarch64": "arm64", "s390x": "s390x", "riscv64": "riscv"}
    return f"__{known[machine]}_sys_" if machine in known else "__se_sys_"


def attachable_functions() -> list[str]:
    """The functions of the kernel that ftrace can attach to: what kprobe.multi takes.

    Raises:
        KernelError: neither tracefs nor /proc/kallsyms says.
    """
    path = f"{tracefs_mount()}/available_filter_functions"
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return [line.split(maxsplit=1)[0] for line in file]
    except OSError:  # not mounted, or not allowed: these are some more than can be attached to
        path = "/proc/kallsyms"
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            fields = (line.split() for line in file)
            return [field[2] for field in fields if field[1] in "tT"]
    except OSError as error:
        raise KernelError(f"read {path}", error.errno or 0) from None
