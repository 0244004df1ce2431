"""Attaching to functions, tracepoints, binaries, perf events and iterators."""

import errno
import os
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from bpfkeeperd import kernel
from bpfkeeperd.desired import Attachment
from bpfkeeperd.errors import KernelError, ObjectError
from bpfkeeperd.hooks import PROG_TYPE_TRACING, HookKind
from bpfkeeperd.symbols import offsets_in
from bpfkeeperd.targets import (
    PERF_EVENTS,
    BinaryTarget,
    FunctionTarget,
    MapTarget,
    PerfEventTarget,
    TracepointTarget,
    is_pattern,
)

PERF_TYPE_TRACEPOINT = 2
ROOM_SECONDS = 2.0
KPROBE_MULTI_MAX = 1 << 20
"""Functions of one link, in the kernel as here."""


def create_trace_link(prog_fd: int, attachment: Attachment, map_fd: Callable[[str], int]) -> int:
    """A new link's descriptor; see `attach.create_link`."""
    try:
        return _create(prog_fd, attachment, map_fd)
    except KernelError as error:
        remedy = error.remedy or _remedy(attachment, error.errno)
        raise KernelError(f"attach {attachment}", error.errno, remedy) from None
    except ObjectError as error:
        raise KernelError(f"attach {attachment}", errno.ENOENT, str(error)) from None


def _create(prog_fd: int, attachment: Attachment, map_fd: Callable[[str], int]) -> int:
    hook, target = attachment.hook, attachment.target
    at_return = hook.name.startswith(("kret", "uret"))
    match target:
        case FunctionTarget() if hook.kind is HookKind.TRACING:
            return kernel.raw_tracepoint_open(None, prog_fd)
        case FunctionTarget(name) if hook.kind is HookKind.KPROBE_MULTI:
            return kernel.kprobe_multi_link(prog_fd, _functions(name), at_return=at_return)
        case FunctionTarget(name, offset):
            function = f"{kernel.syscall_prefix()}{name}" if "syscall" in hook.name else name
            return _probe(prog_fd, "kprobe", (function, offset), at_return=at_return)
        case TracepointTarget(name) if hook.kind is HookKind.RAW_TRACEPOINT:
            fixed = hook.prog_type == PROG_TYPE_TRACING
            return kernel.raw_tracepoint_open(None if fixed else name, prog_fd)
        case TracepointTarget(name):
            event = kernel.perf_event_open((PERF_TYPE_TRACEPOINT, _tracepoint(name)), cpu=0)
            return _held(prog_fd, event)
        case BinaryTarget():
            return _binary_link(prog_fd, attachment, target, at_return=at_return)
        case PerfEventTarget(event_name, frequency, period, cpu, pid):
            event = kernel.perf_event_open(
                PERF_EVENTS[event_name],
                frequency=frequency,
                period=period,
                cpu=-1 if cpu is None else cpu,
                pid=-1 if pid is None else pid,
            )
            return _held(prog_fd, event)
        case MapTarget(name):
            return kernel.iter_link(prog_fd, map_fd(name))
        case _:
            return kernel.iter_link(prog_fd)


def _binary_link(
    prog_fd: int, attachment: Attachment, target: BinaryTarget, *, at_return: bool
) -> int:
    """The link of a uprobe. Its cookie says in which file and where in it (`binary_place`)."""
    path, pid = target.path, target.pid
    offsets, cookie = binary_place(target)
    if attachment.hook.kind is HookKind.UPROBE_MULTI:
        return kernel.uprobe_multi_link(
            prog_fd, path, offsets, cookie=cookie, pid=pid or 0, at_return=at_return
        )
    place = path, offsets[0]
    return _probe(prog_fd, "uprobe", place, cookie, at_return=at_return, pid=pid)


def binary_place(target: BinaryTarget) -> tuple[Sequence[int], int]:
    """Offsets in a binary, and a number for them in the file that it is now.

    Raises:
        ObjectError: there is no such function.
        KernelError: the file cannot be read.
    """
    try:
        found = os.stat(target.path)
        offsets: tuple[int, ...] = (0,)
        if target.symbol:
            offsets = offsets_in(target.path, target.symbol, found)
    except OSError as error:
        raise KernelError(f"look at {target.path}", error.errno or 0) from None
    offsets = tuple(offset + target.offset for offset in offsets)
    return offsets, kernel.place_number(found.st_dev, found.st_ino, offsets)


def _probe(
    prog_fd: int,
    source: str,
    place: tuple[str, int],
    cookie: int = 0,
    *,
    at_return: bool,
    pid: int | None = None,
) -> int:
    kind = kernel.perf_source(source)
    if kind is None:
        raise KernelError("attach", errno.EOPNOTSUPP, f"this kernel is built without {source}s")
    config = kernel.return_bit(source) if at_return else 0
    # Of all processes on whatever CPU it is: a probe fires wherever it is hit.
    where = (-1, 0) if pid is None else (pid, -1)
    event = kernel.perf_event_open((kind, config), place=place, pid=where[0], cpu=where[1])
    return _held(prog_fd, event, cookie)


def _held(prog_fd: int, event_fd: int, cookie: int = 0) -> int:
    """The link of a perf event, whose descriptor is of no more use.

    An event has room for 64 programs (BPF_TRACE_MAX_PROGS), and those that were let go of stand in
    it until the kernel comes to it: then this waits.
    """
    deadline = time.monotonic() + ROOM_SECONDS
    with kernel.holding(event_fd):
        while True:
            try:
                return kernel.perf_link(prog_fd, event_fd, cookie)
            except KernelError as error:
                if error.errno == errno.E2BIG and time.monotonic() < deadline:
                    time.sleep(0.005)
                    continue
                remedy = {
                    errno.EINVAL: "the kernel may lack links of perf events (Linux 5.15)",
                    errno.E2BIG: "64 programs are attached here already, which is the most",
                }.get(error.errno, "")
                raise KernelError(error.action, error.errno, remedy) from None


def tracepoint_path(name: str) -> str | None:
    """Where tracefs tells of a tracepoint; None when it is not mounted."""
    mount = kernel.tracefs_mount()
    return f"{mount}/events/{name}" if mount else None


NO_TRACEFS = "no tracefs is mounted here: mount -t tracefs tracefs /sys/kernel/tracing"


def _tracepoint(name: str) -> int:
    path = tracepoint_path(name)
    if path is None:
        raise KernelError("attach", errno.ENOENT, NO_TRACEFS)
    try:
        with open(f"{path}/id", encoding="ascii") as file:
            return int(file.read())
    except OSError as error:
        raise KernelError("attach", error.errno or 0, f"there is no {path}/id") from None


def _functions(name: str) -> list[str]:
    if not is_pattern(name):
        return [name]
    found = sorted({one for one in kernel.attachable_functions() if fnmatchcase(one, name)})
    if not 0 < len(found) <= KPROBE_MULTI_MAX:
        raise KernelError("attach", errno.ENOENT, f"{len(found)} functions match {name}")
    return found


def _remedy(attachment: Attachment, number: int) -> str:
    """What to do about an errno, as far as the kind of hook tells."""
    match number, attachment.hook.kind:
        case errno.ENOENT, HookKind.RAW_TRACEPOINT:
            return "the kernel has no such tracepoint: bpftrace -l 'rawtracepoint:*' lists them"
        case (
            (errno.ENOENT | errno.EADDRNOTAVAIL | errno.EILSEQ),
            (HookKind.KPROBE | HookKind.KPROBE_MULTI),
        ):
            return "the kernel has no such function, or it cannot be probed: see /proc/kallsyms"
        case ((errno.EINVAL | errno.EOPNOTSUPP), HookKind.KPROBE_MULTI):
            return "the kernel may lack kprobe.multi (Linux 5.18, CONFIG_FPROBE)"
        case errno.EINVAL, HookKind.UPROBE_MULTI:
            return "the kernel may lack uprobe.multi, which came with Linux 6.6"
        case _, HookKind.TRACING if number in (errno.EBUSY, 524, errno.EINVAL, errno.ENOENT):
            return (
                "the kernel cannot attach to this function; fentry, fexit and LSM need"
                " CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"
            )
        case ((errno.ENOENT | errno.EOPNOTSUPP | errno.ENODEV), HookKind.PERF_EVENT):
            return "this machine does not count such events; cpu-clock is everywhere"
        case ((errno.EACCES | errno.EPERM), HookKind.UPROBE):
            return "uprobes take CAP_SYS_ADMIN; uprobe.multi takes CAP_PERFMON"
        case ((errno.EACCES | errno.EPERM), _):
            return "it takes CAP_PERFMON or CAP_SYS_ADMIN: see kernel.perf_event_paranoid"
        case _:
            return ""
