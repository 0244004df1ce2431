"""Where things are on this machine: mounts, cgroups, network namespaces, interfaces, CPUs."""

import errno
import functools
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from bpfkeeperd._libbpf import lib
from bpfkeeperd.compare import DEFAULT_STACK_DEPTH, Machine
from bpfkeeperd.errors import KernelError

BPFFS_MAGIC = 0xCAFE4A11
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP)


def is_bpffs(place: str | int) -> bool:
    """Whether a path, or what is open, is on a bpffs; False too when it is not there, or not for
    this user.

    Raises:
        KernelError: nobody can tell.
    """
    if isinstance(place, int):
        magic = int(lib.keeper_fs_magic_of(place))
    else:
        magic = int(lib.keeper_fs_magic(os.fsencode(place)))
    if magic < 0 and -magic not in _NOT_THERE:
        path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else place
        raise KernelError(f"look which file system {path} is on", -magic)
    return magic == BPFFS_MAGIC


def cgroup2_mount() -> str | None:
    """Where cgroup v2 is mounted; on a machine with v1 as well this is not /sys/fs/cgroup."""
    return next((place for _, _, place in _mounts("cgroup2")), None)


def bpffs_mounts() -> list[str]:
    """Where each bpffs that this process sees is mounted, once; as whole as can be. Those that
    another mount covers are not seen."""
    places: dict[str, tuple[str, str]] = {}
    for device, root, place in _mounts("bpf"):
        better = device not in places or (root == "/" and places[device][0] != "/")
        if better and _device(place) == device:
            places[device] = (root, place)
    return [place for _, place in places.values()]


class Mount(NamedTuple):
    """A file system where it is mounted."""

    place: str
    options: frozenset[str]
    """Those of the mount and those of the file system."""
    propagates: bool
    """What is mounted elsewhere, on what this is a copy of, comes here, too."""


def mount_of(path: str) -> Mount | None:
    """The mount that a path is on; None where it is not seen."""
    device, found = _device(path), None
    real = os.path.realpath(path)
    with suppress(FileNotFoundError), open("/proc/self/mountinfo", "rb") as mounts:  # no /proc
        for line in mounts:
            fields, _, rest = os.fsdecode(line).rstrip("\n").partition(" - ")
            _, _, of, _, place, options, *tags = fields.split(" ")
            place = _plain(place)
            # The last one is on top.
            if of == device and f"{real}/".startswith(f"{place.rstrip('/')}/"):
                both = frozenset((*options.split(","), *rest.split(" ")[-1].split(",")))
                shared = any(tag.startswith(("shared:", "master:")) for tag in tags)
                found = Mount(place, both, shared)
    return found


def has_own_mounts() -> bool:
    """Whether this process certainly has another mount namespace than the machine's first
    process."""
    try:
        return os.readlink("/proc/1/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    except OSError:  # not for this user to see
        return False


def _plain(text: str) -> str:
    """A path of mountinfo as it is."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def _device(place: str) -> str:
    """Of the file system at a path, as mountinfo has it; empty: nothing is there."""
    try:
        found = os.stat(place).st_dev
    except OSError:
        return ""
    return f"{os.major(found)}:{os.minor(found)}"


def _mounts(kind: str) -> Iterator[tuple[str, str, str]]:
    """Of a kind of file system: device, what of it is mounted, where."""
    with open("/proc/self/mountinfo", "rb") as mounts:  # a carriage return is part of a path
        for line in mounts:
            fields, _, rest = os.fsdecode(line).partition(" - ")
            if rest.startswith(f"{kind} "):
                device, root, place = fields.split(" ")[2:5]
                yield device, root, _plain(place)


def netns_path(netns: str) -> str:
    """The file of a network namespace: as given when absolute, else as ``ip netns`` names it."""
    return netns if netns.startswith("/") else f"/run/netns/{netns}"


@contextmanager
def inside_netns(path: str | None) -> Iterator[None]:
    """Runs a block in another network namespace; this thread only. None: where it is already.

    Raises:
        KernelError: there is no such namespace, or it cannot be entered (needs CAP_SYS_ADMIN).
    """
    if path is None:
        yield
        return
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"open network namespace {path}", error.errno or 0) from None
    home = -1
    try:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        result = lib.keeper_setns(target)
        if result < 0:
            remedy = "it takes CAP_SYS_ADMIN" if result == -errno.EPERM else ""
            raise KernelError(f"enter network namespace {path}", -result, remedy)
        try:
            yield
        finally:
            result = lib.keeper_setns(home)
            if result < 0:  # nothing this process does from here on would be where it should be
                raise SystemExit(f"cannot return to the own network namespace: errno {-result}")
    finally:
        if home >= 0:
            os.close(home)
        os.close(target)


def interfaces(netns: str | None = None) -> dict[str, int]:
    """Name to index of all interfaces of a network namespace, given by its path."""
    with inside_netns(netns):
        return {name: index for index, name in socket.if_nameindex()}


def interface_index(name: str) -> int:
    """The index of an interface in the network namespace of this thread."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise KernelError(f"find interface {name}", error.errno or errno.ENODEV) from None


@functools.cache
def cpu_numbers() -> tuple[int, ...]:
    """The CPUs that this machine may ever have, as per-CPU maps list them."""
    return _cpus("possible")


def online_cpus() -> tuple[int, ...]:
    """The CPUs that are up now."""
    return _cpus("online")


def _cpus(which: str) -> tuple[int, ...]:
    with open(f"/sys/devices/system/cpu/{which}", encoding="ascii") as file:
        ranges = [part.split("-") for part in file.read().strip().split(",")]
    return tuple(cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1))


def possible_cpus() -> int:
    """How many CPUs this machine may ever have: what per-CPU maps are sized by."""
    return len(cpu_numbers())


@functools.cache
def page_size() -> int:
    return os.sysconf("SC_PAGESIZE")


@functools.cache
def kernel_cpus() -> int:
    """How many CPUs this kernel was built for (NR_CPUS)."""
    with open("/sys/devices/system/cpu/kernel_max", encoding="ascii") as file:
        return int(file.read()) + 1


def stack_depth() -> int | None:
    """The sysctl kernel.perf_event_max_stack; None on a kernel without perf events."""
    try:
        with open("/proc/sys/kernel/perf_event_max_stack", encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return None


@functools.cache
def memory_bytes() -> int:
    """All of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * page_size()


def numa_nodes() -> frozenset[int]:
    """The NUMA nodes that are online; node 0 alone on a kernel without NUMA."""
    try:
        with open("/sys/devices/system/node/online", encoding="ascii") as file:
            ranges = [part.partition("-") for part in file.read().strip().split(",")]
    except FileNotFoundError:
        return frozenset({0})
    return frozenset(
        node for first, _, last in ranges for node in range(int(first), int(last or first) + 1)
    )


@functools.cache
def boot_id() -> str:
    """The ID of the kernel's boot; map IDs start again from 1 after each.

    Containers have a file with another ID mounted over the kernel's, which a service with
    ProtectProc= does not see. Without CAP_SYS_ADMIN there is nothing but that file.
    """
    proc, name = "/proc", "sys/kernel/random/boot_id"
    bare = -1
    if os.stat(f"{proc}/{name}").st_dev != os.stat(proc).st_dev:
        bare = int(lib.keeper_bare_proc())
    try:
        proc = f"/proc/self/fd/{bare}" if bare >= 0 else proc
        with open(f"{proc}/{name}", encoding="ascii") as file:
            return file.read().strip()
    finally:
        if bare >= 0:
            os.close(bare)


def machine() -> Machine:
    """What sizes depend on here; nothing of it takes root."""
    return Machine(
        possible_cpus=possible_cpus(),
        page_size=page_size(),
        kernel_cpus=kernel_cpus(),
        stack_depth=stack_depth() or DEFAULT_STACK_DEPTH,
        memory_bytes=memory_bytes(),
        numa_nodes=numa_nodes(),
        online_cpus=online_cpus(),
    )
