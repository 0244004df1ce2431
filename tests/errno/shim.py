"""The library that has calls fail: compiled, and spoken to from a process that was started with
it."""

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
CALLS_MAX = 8192
BPF_COMMANDS = {
    0: "MAP_CREATE", 1: "MAP_LOOKUP_ELEM", 2: "MAP_UPDATE_ELEM", 3: "MAP_DELETE_ELEM",
    4: "MAP_GET_NEXT_KEY", 5: "PROG_LOAD", 6: "OBJ_PIN", 7: "OBJ_GET", 8: "PROG_ATTACH",
    9: "PROG_DETACH", 12: "MAP_GET_NEXT_ID", 13: "PROG_GET_FD_BY_ID", 14: "MAP_GET_FD_BY_ID",
    15: "OBJ_GET_INFO_BY_FD", 16: "PROG_QUERY", 17: "RAW_TRACEPOINT_OPEN", 18: "BTF_LOAD",
    19: "BTF_GET_FD_BY_ID", 21: "MAP_LOOKUP_AND_DELETE_ELEM", 22: "MAP_FREEZE",
    24: "MAP_LOOKUP_BATCH", 28: "LINK_CREATE", 29: "LINK_UPDATE", 30: "LINK_GET_FD_BY_ID",
    31: "LINK_GET_NEXT_ID", 33: "ITER_CREATE", 34: "LINK_DETACH", 35: "PROG_BIND_MAP",
}  # fmt: skip
"""``enum bpf_cmd``."""


class _Call(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 16),
        ("command", ctypes.c_int),
        ("failed", ctypes.c_int),
        ("subject", ctypes.c_char * 240),
    )


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was counted."""

    name: str
    """A function of libc, or a command of bpf(2) without its BPF_."""
    subject: str
    """The path, or the name of what is made; empty where there is none."""
    failed: bool

    def __str__(self) -> str:
        return f"{self.name}({self.subject})"


@dataclass(frozen=True, slots=True)
class Shot:
    """Which calls fail, counted from 0, and with what."""

    first: int
    last: int
    errno: int

    def __str__(self) -> str:
        name = errno.errorcode[self.errno]
        more = "" if self.first == self.last else " and all after it"
        return f"call {self.first}{more}: {name}"


def build(directory: Path) -> Path:
    """The library, compiled."""
    path = directory / "shim.so"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(path), str(SOURCE)], check=True)
    return path


class Shim:
    """What a process that has the library preloaded says to it."""

    def __init__(self, directory: Path) -> None:
        self._library = ctypes.CDLL(None)
        self._directory = os.fsencode(directory)

    @contextmanager
    def armed(self, shot: Shot | None) -> Iterator[None]:
        """Calls on and below the directory are counted in this block, and those of a shot fail."""
        first, last, number = (shot.first, shot.last, shot.errno) if shot else (-1, -1, 0)
        self._library.shim_arm(self._directory, first, last, number)
        try:
            yield
        finally:
            self._library.shim_disarm()

    def calls(self) -> list[Call]:
        """Those of the last block."""
        count = ctypes.c_int.in_dll(self._library, "shim_count").value
        assert count <= CALLS_MAX, "more calls than the library takes note of"
        found = (_Call * CALLS_MAX).in_dll(self._library, "shim_calls")
        return [_call(found[place]) for place in range(count)]


def _call(found: _Call) -> Call:
    name = found.name.decode()
    if name == "bpf":
        name = BPF_COMMANDS.get(found.command, f"bpf {found.command}")
    return Call(name, os.fsdecode(found.subject), bool(found.failed))
