"""Looks for the targets of attachments: what number each has now, or why there is none."""

import os
from collections.abc import Iterable, Mapping
from typing import assert_never

from bpfkeeperd import kernel
from bpfkeeperd.attach import cgroup_path
from bpfkeeperd.attachtrace import NO_TRACEFS, binary_place, tracepoint_path
from bpfkeeperd.errors import KernelError, ObjectError
from bpfkeeperd.observed import ObservedMap
from bpfkeeperd.targets import (
    BinaryTarget,
    CgroupTarget,
    FunctionTarget,
    InterfaceTarget,
    IteratorTarget,
    MapTarget,
    NetfilterTarget,
    NetnsTarget,
    PerfEventTarget,
    Target,
    TracepointTarget,
    is_pattern,
)


def observe_targets(
    targets: Iterable[Target], maps: Mapping[str, ObservedMap]
) -> dict[Target, int | str]:
    """What `LinkInfo.target_id` says of a link at each, or why there can be none.

    ``maps`` are those of the manifest.
    """
    places = _Places(maps)
    found: dict[Target, int | str] = {}
    for target in targets:
        if target not in found:
            found[target] = places.number(target)
    return found


class _Places:
    """Asks the system once for what several targets have in common."""

    def __init__(self, maps: Mapping[str, ObservedMap]) -> None:
        self._maps = maps
        self._mount: str | None = None
        self._interfaces: dict[str | None, dict[str, int] | str] = {}

    def number(self, target: Target) -> int | str:
        match target:
            case CgroupTarget(path):
                self._mount = self._mount or kernel.cgroup2_mount()
                return _cgroup_id(cgroup_path(path, self._mount), self._mount)
            case InterfaceTarget(name, netns):
                return self._interface(name, netns)
            case NetnsTarget(netns):
                return _netns_inode(kernel.netns_path(netns))
            case NetfilterTarget(netns=netns):
                inode = _netns_inode(kernel.netns_path(netns)) if netns else 1
                return inode if isinstance(inode, str) else 1
            case MapTarget(name):
                found = self._maps.get(name)
                info = (found.pinned or found.lost) if found else None
                return info.id if info else f"there is no map {name}"
            case BinaryTarget(pid=pid):
                return _process_fault(pid) or _binary(target)
            case TracepointTarget(name):
                return _tracepoint_fault(name) or 1
            case PerfEventTarget(cpu=cpu, pid=pid):
                return _cpu_fault(cpu) or _process_fault(pid) or 1
            case FunctionTarget() | IteratorTarget():
                return 1
            case _:
                assert_never(target)

    def _interface(self, name: str, netns: str | None) -> int | str:
        if netns not in self._interfaces:
            self._interfaces[netns] = _interfaces(netns)
        indexes = self._interfaces[netns]
        if isinstance(indexes, str):
            return indexes
        where = f" in network namespace {netns}" if netns else ""
        return indexes.get(name, f"there is no interface {name}{where}")


def _binary(target: BinaryTarget) -> int | str:
    try:
        return binary_place(target)[1]
    except (KernelError, ObjectError) as error:
        return f"{target.path}: {error}" if isinstance(error, ObjectError) else str(error)


def _tracepoint_fault(name: str) -> str:
    """Why there is no such tracepoint; of raw ones, which have no group, the kernel tells none."""
    if "/" not in name:
        return ""
    path = tracepoint_path(name)
    if path is None:
        return "" if name in _tracepoints else NO_TRACEFS
    if not os.path.exists(f"{path}/id"):
        return f"there is no tracepoint {name}: see {os.path.dirname(os.path.dirname(path))}"
    _tracepoints.add(name)
    return ""


_tracepoints: set[str] = set()
"""Those that were there: one that is attached to goes on without tracefs."""


def _cpu_fault(cpu: int | None) -> str:
    if cpu is None or cpu in kernel.online_cpus():
        return ""
    return f"CPU {cpu} is not online"


def _process_fault(pid: int | None) -> str:
    if pid is None:
        return ""
    try:
        os.kill(pid, 0)  # /proc may be mounted so that processes of others are not seen
    except ProcessLookupError:
        return f"there is no process {pid}"
    except PermissionError:
        pass
    return ""


def _netns_inode(path: str) -> int | str:
    try:
        found = os.stat(path)
        of_namespaces = os.stat("/proc/self/ns/net").st_dev
    except OSError as error:
        return f"cannot look at network namespace {path}: {error.strerror}"
    if found.st_dev != of_namespaces:
        return f"{path} is no network namespace: see ip netns list"
    return found.st_ino


def _cgroup_id(path: str | None, mount: str | None) -> int | str:
    if path is None:
        return "no cgroup2 is mounted here: mount -t cgroup2 none /sys/fs/cgroup"
    if is_pattern(path):
        return f"cannot look into the directories of {path}: what matches stays as it is"
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return f"there is no cgroup {path}"
    except OSError as error:
        return f"cannot look at cgroup {path}: {error.strerror}"
    if not path.startswith(f"{mount}/") and not os.path.exists(f"{path}/cgroup.controllers"):
        return f"{path} is no directory of a cgroup2 file system"
    return found.st_ino


def _interfaces(netns: str | None) -> dict[str, int] | str:
    try:
        return kernel.interfaces(kernel.netns_path(netns) if netns else None)
    except KernelError as error:
        return str(error)
