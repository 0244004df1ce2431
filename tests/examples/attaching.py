"""Pinned programs attached by others than the keeper: owners of sockets and of perf events."""

import ctypes
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfkeeperd import kernel

_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}.get(platform.machine(), 298)
_SO_ATTACH_BPF = 50
_PERF_EVENT_IOC_ENABLE, _PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408
_PERF_TYPE_SOFTWARE, _PERF_TYPE_TRACEPOINT = 1, 2
_PERF_COUNT_SW_BPF_OUTPUT = 10
_PERF_SAMPLE_RAW = 1 << 10
_CLOEXEC = 8


def perf_event_open(kind: int, config: int, sample_type: int, cpu: int) -> int:
    """A perf event of all processes on one CPU; it wakes its reader at each event."""
    # struct perf_event_attr of the first version: type, size, config, sample_period, sample_type,
    # read_format, flags, wakeup_events, bp_type, config1
    attributes = struct.pack("=IIQQQQQIIQ", kind, 64, config, 1, sample_type, 0, 0, 1, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_SYS_PERF_EVENT_OPEN, attributes, -1, cpu, -1, _CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def output_event(cpu: int) -> int:
    """The perf event that a program's bpf_perf_event_output() on a CPU arrives at."""
    fd = perf_event_open(_PERF_TYPE_SOFTWARE, _PERF_COUNT_SW_BPF_OUTPUT, _PERF_SAMPLE_RAW, cpu)
    fcntl.ioctl(fd, _PERF_EVENT_IOC_ENABLE, 0)
    return fd


@contextmanager
def _opened(program: Path) -> Iterator[int]:
    fd = kernel.pinned(str(program), kernel.PinKind.PROGRAM)
    assert fd is not None, f"nothing is pinned at {program}"
    with kernel.holding(fd):
        yield fd


def attach_filter(sock: socket.socket, program: Path) -> None:
    """Gives a socket a filter, in place of what it has."""
    with _opened(program) as fd:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, fd)


def attach_tracepoint(tracepoint_id: int, program: Path) -> int:
    """A perf event that runs a program at a tracepoint, on all CPUs, until it is closed."""
    event = perf_event_open(_PERF_TYPE_TRACEPOINT, tracepoint_id, 0, 0)
    try:
        with _opened(program) as fd:
            fcntl.ioctl(event, _PERF_EVENT_IOC_SET_BPF, fd)
        fcntl.ioctl(event, _PERF_EVENT_IOC_ENABLE, 0)
    except BaseException:
        os.close(event)
        raise
    return event
