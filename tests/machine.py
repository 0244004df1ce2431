"""This machine, as tests need it: kernel IDs, network namespaces, traffic."""

import ctypes
import os
import platform
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.hooks import Hook, hook_of_section
from bpfkeeperd.maptypes import PROG_ARRAY

IN_GUEST = bool(os.environ.get("BPFKEEPERD_TESTS_GUEST"))
"""Whether this is a guest of `tests.systemd`, where tests may do as they like."""
_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 321)
_NEXT_ID = {"prog": 11, "map": 12, "btf": 23, "link": 31}  # enum bpf_cmd: BPF_*_GET_NEXT_ID


def _bpf(command: int, attributes: bytes, size: int = 128) -> tuple[int, bytes]:
    """bpf(2) as it is, for what the keeper itself has no use for: result, attributes after it."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, size)
    return libc.syscall(_SYS_BPF, command, buffer, len(attributes)), buffer.raw


def bpf_ids(kind: str) -> set[int]:
    """All IDs of a kind on this machine: ``prog``, ``map``, ``link``, ``btf``."""
    ids, last = set[int](), 0
    while True:
        result, after = _bpf(_NEXT_ID[kind], struct.pack("=III", last, 0, 0))
        if result < 0:
            return ids
        last = struct.unpack_from("=II", after)[1]
        ids.add(last)


class BpfObject(NamedTuple):
    """A program or map as the kernel knows it."""

    name: str
    btf: bytes
    """Of the object that it was loaded from; empty if it has none."""
    maps: frozenset[int]
    """IDs of those that a program uses."""


def bpf_object(kind: str, number: int) -> BpfObject | None:
    """A ``prog`` or ``map`` by its ID; None when it is gone.

    None, too, for a program array: one that is let go of once more while the kernel empties it
    (opening it by its ID is enough) loses a reference, and is never freed.
    """
    # BPF_*_GET_FD_BY_ID; the name and the ID of the BTF in struct bpf_prog_info and bpf_map_info.
    command, name_offset, btf_offset = {"prog": (13, 64, 128), "map": (14, 24, 64)}[kind]
    maps = (ctypes.c_uint32 * 64)()
    wanted = struct.pack("=52xIQ", len(maps), ctypes.addressof(maps)) if kind == "prog" else b""
    info = _info(command, number, wanted)
    if info is None or (kind == "map" and struct.unpack_from("=I", info)[0] == PROG_ARRAY):
        return None
    (btf_id,) = struct.unpack_from("=I", info, btf_offset)
    name = info[name_offset : name_offset + 16].split(b"\0")[0].decode()
    return BpfObject(name, _btf(btf_id) if btf_id else b"", frozenset(maps) - {0})


def _btf(number: int) -> bytes:
    """A BTF by its ID; empty when it is gone."""
    data = ctypes.create_string_buffer(1 << 16)
    wanted = struct.pack("=QI", ctypes.addressof(data), len(data))
    info = _info(19, number, wanted)  # BPF_BTF_GET_FD_BY_ID, struct bpf_btf_info
    return data.raw[: struct.unpack_from("=I", info, 8)[0]] if info else b""


def _info(command: int, number: int, wanted: bytes) -> bytes | None:
    """What the kernel tells of an object by its ID, which a command opens; None when it is gone."""
    fd, _ = _bpf(command, struct.pack("=III", number, 0, 0))
    if fd < 0:
        return None
    info = ctypes.create_string_buffer(wanted, 256)
    with kernel.holding(fd):
        _bpf(15, struct.pack("=IIQ", fd, 232, ctypes.addressof(info)))  # BPF_OBJ_GET_INFO_BY_FD
    return info.raw


def others_hold(kind: str, number: int) -> bool:
    """Whether a process other than this one has a ``prog`` or ``map`` open."""
    line = f"{kind}_id:\t{number}\n"
    for directory in Path("/proc").glob("[0-9]*/fdinfo"):
        if directory.parent.name != str(os.getpid()):
            with suppress(OSError):
                for file in directory.iterdir():
                    with suppress(OSError):
                        if line in file.read_text():
                            return True
    return False


def children() -> list[str]:
    """The command lines of this process's children that run."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(f"{directory.name}: {command}")
    return found


def adopt_orphans() -> None:
    """From now on processes whose parent is gone are children of this one."""
    if ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0):  # PR_SET_CHILD_SUBREAPER
        number = ctypes.get_errno()
        raise OSError(number, f"cannot adopt orphans: {os.strerror(number)}")


def enter_mount_namespace() -> None:
    """Gives this process, and those it starts, mounts of their own (unshare -m), and names of
    network namespaces."""
    libc = ctypes.CDLL(None, use_errno=True)
    private, recursive, new_mounts = 1 << 18, 1 << 14, 0x20000  # MS_PRIVATE, MS_REC, CLONE_NEWNS
    names = "/run/netns"
    os.makedirs(names, exist_ok=True)
    if (
        libc.unshare(new_mounts)
        or libc.mount(b"none", b"/", None, private | recursive, None)
        or libc.mount(b"tmpfs", names.encode(), b"tmpfs", 0, None)
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot have mounts of our own: {os.strerror(number)}")


def detach_link(path: Path) -> None:
    """Ends the attachment of a pinned link, which stays as a dead one (BPF_LINK_DETACH)."""
    link = kernel.pinned(str(path), kernel.PinKind.LINK)
    assert link is not None, f"nothing is pinned at {path}"
    with kernel.holding(link):
        assert _bpf(34, struct.pack("=I", link))[0] == 0, f"errno {ctypes.get_errno()}"


def verified_instructions(program_fd: int) -> int:
    """How many instructions the verifier went through, which is what loading costs."""
    info = ctypes.create_string_buffer(256)
    _bpf(15, struct.pack("=IIQ", program_fd, 220, ctypes.addressof(info)))
    return int(struct.unpack_from("=I", info.raw, 216)[0])


def passed_over(program_fd: int) -> int:
    """How many events the kernel did not run a program for, because of what was going on there:
    see `tests.kernel.tracing.Tracing.beside_a_control`."""
    info = ctypes.create_string_buffer(256)
    _bpf(15, struct.pack("=IIQ", program_fd, 220, ctypes.addressof(info)))
    return int(struct.unpack_from("=Q", info.raw, 208)[0])  # recursion_misses


def prog_attach(program_fd: int, target_fd: int, attach_type: int) -> int:
    """BPF_PROG_ATTACH: 0, or the errno."""
    attributes = struct.pack("=IIII", target_fd, program_fd, attach_type, 0)
    return ctypes.get_errno() if _bpf(8, attributes)[0] < 0 else 0


def skip_without(hook: Hook) -> None:
    """Skips a test that needs a hook this kernel lacks, with the reason that the probe gives.

    `tests/kernel/test_probes.py` holds the probes against really attaching.
    """
    if reason := kernel.lacks(hook):
        pytest.skip(f"this kernel cannot attach {hook.name}: {reason}")


def skip_without_section(section: str) -> None:
    """As `skip_without`, by a program's section name."""
    hook = hook_of_section(section)
    assert hook, f"no hook is called {section}"
    skip_without(hook)


def counts_hashes_at_once() -> bool:
    """Whether this kernel tells how many entries a hash has; else somebody has to go through it."""
    return b"\0bpf_map_sum_elem_count\0" in Path("/sys/kernel/btf/vmlinux").read_bytes()


def fill_map(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Writes many entries in one call (BPF_MAP_UPDATE_BATCH)."""
    key_buffer = ctypes.create_string_buffer(keys, len(keys))
    value_buffer = ctypes.create_string_buffer(values, len(values))
    addresses = ctypes.addressof(key_buffer), ctypes.addressof(value_buffer)
    attributes = struct.pack("=QQQQIIQQ", 0, 0, *addresses, count, fd, 0, 0)
    result, after = _bpf(26, attributes)
    written = struct.unpack_from("=I", after, 32)[0]
    assert (result, written) == (0, count), f"{written} of {count} entries written"


def run_program(fd: int, packet: bytes = b"") -> int:
    """Runs a program once (BPF_PROG_TEST_RUN), on a packet if it needs one; what it returned."""
    data = ctypes.create_string_buffer(packet)
    address = ctypes.addressof(data) if packet else 0
    attributes = struct.pack("=IIIIQ", fd, 0, len(packet), 0, address) + bytes(56)
    result, after = _bpf(10, attributes)
    assert result == 0, f"errno {ctypes.get_errno()}"
    return int(struct.unpack_from("=I", after, 4)[0])


class Netns:
    """Two namespaces ``<name>-a`` and ``<name>-b``, with veth ``veth0`` in each."""

    here_address, there_address = "10.77.0.1", "10.77.0.2"

    def __init__(self, name: str) -> None:
        self.here, self.there = f"{name}-a", f"{name}-b"

    def make(self) -> None:
        for name in (self.here, self.there):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        self.join()

    def join(self) -> None:
        """Adds the pair, which must not be there."""
        peer = ("peer", "name", "veth0", "netns", self.there)
        ip("-n", self.here, "link", "add", "veth0", "type", "veth", *peer)
        for name, address in ((self.here, self.here_address), (self.there, self.there_address)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "veth0")
            ip("-n", name, "link", "set", "veth0", "up")

    def remove(self) -> None:
        for name in (self.here, self.there):
            subprocess.run(["ip", "netns", "delete", name], check=False)

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        with kernel.inside_netns(kernel.netns_path(name)):
            yield

    def send(self, packets: int, *, backwards: bool = False) -> None:
        """Sends UDP packets from there to here (or backwards), one at a time."""
        source, address = self.there, self.here_address
        if backwards:
            source, address = self.here, self.there_address
        with self.inside(source), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(packets):
                sender.sendto(b"x" * 32, (address, 9))


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def inside_cgroup(cgroup: Path) -> Iterator[None]:
    """Runs a block with this process in a cgroup."""
    mount = kernel.cgroup2_mount()
    assert mount
    with open("/proc/self/cgroup", encoding="ascii") as file:
        home = next(line for line in file if line.startswith("0::")).strip()[3:]
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (Path(mount) / home.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))


def send_datagrams(count: int) -> None:
    """Sends UDP packets over loopback, each one passing egress once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(b"x", ("127.0.0.1", 9))


def map_value(path: Path, key: bytes, size: int) -> bytes | None:
    """One value of a pinned map."""
    found = kernel.pinned_map(str(path))
    assert found, f"nothing is pinned at {path}"
    with kernel.holding(found[0]):
        return kernel.map_lookup(found[0], key, size)


def map_id(path: Path) -> int | None:
    found = kernel.pinned_map(str(path))
    if found is None:
        return None
    os.close(found[0])
    return found[1].id


def events(path: Path) -> tuple[int, int]:
    """Events and steps counted by tests/bpf/counter.bpf.c."""
    value = map_value(path, bytes(4), 16)
    if value is None:
        return 0, 0
    counted, steps = struct.unpack("=QQ", value)
    return counted, steps
