"""What the patterns of a manifest match now."""

import errno
import os
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from bpfkeeperd import kernel
from bpfkeeperd.attach import cgroup_path
from bpfkeeperd.desired import Desired
from bpfkeeperd.errors import KernelError
from bpfkeeperd.patterns import expand, pattern_targets
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, Target, is_pattern

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)
"""ENODEV: of a cgroup that goes just now."""


def with_matches(desired: Desired) -> Desired:
    """What is wanted now: an attachment for each match in the place of each pattern."""
    patterns = pattern_targets(desired)
    if not patterns:
        return desired
    mount = kernel.cgroup2_mount()
    return expand(desired, find_matches(patterns, mount), mount)


def find_matches(patterns: Iterable[Target], mount: str | None) -> dict[Target, tuple[Target, ...]]:
    """Each pattern's matches, in order; the interfaces of a network namespace are read once.

    Where it cannot be seen what is there (no cgroup2 is mounted, a namespace cannot be entered) a
    pattern matches itself, too: it is looked for, the reason is told, and nothing is detached.
    """
    found: dict[Target, tuple[Target, ...]] = {}
    names: dict[str | None, list[str] | None] = {}
    for pattern in patterns:
        match pattern:
            case CgroupTarget(path):
                found[pattern] = _cgroups(pattern, cgroup_path(path, mount) if mount else None)
            case InterfaceTarget(name, netns):
                if netns not in names:
                    names[netns] = _interfaces(netns)
                there = names[netns]
                found[pattern] = (
                    (pattern,)
                    if there is None
                    else tuple(
                        replace(pattern, name=own) for own in there if fnmatchcase(own, name)
                    )
                )
            case _:
                pass
    return found


def _cgroups(pattern: CgroupTarget, place: str | None) -> tuple[Target, ...]:
    """``place`` is the absolute path; None: no cgroup2 is mounted."""
    if place is None:
        return (pattern,)
    top = len(place) - len(pattern.path)
    paths, whole = look_for_cgroups(place)
    matches = tuple(replace(pattern, path=path[top:]) for path in paths)
    return matches if whole else (*matches, pattern)


def _interfaces(netns: str | None) -> list[str] | None:
    try:
        return sorted(kernel.interfaces(kernel.netns_path(netns) if netns else None))
    except KernelError:
        return None


def look_for_cgroups(pattern: str) -> tuple[list[str], bool]:
    """The directories that match an absolute path, component by component; and whether all could be
    looked into."""
    found, whole = ["/"], True
    for part in pattern.strip("/").split("/"):
        if not is_pattern(part):
            found = [f"{above.rstrip('/')}/{part}" for above in found]
            continue
        below = []
        for above in found:
            names = _directories(above)
            whole = whole and names is not None
            below += [
                f"{above.rstrip('/')}/{name}" for name in names or () if fnmatchcase(name, part)
            ]
        found = below
    return [path for path in found if os.path.isdir(path)], whole


def matching_cgroups(pattern: str) -> list[str]:
    return look_for_cgroups(pattern)[0]


def _directories(path: str) -> list[str] | None:
    """Names, in order; none where there is no directory (any more), None where it cannot be
    read."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        return [] if error.errno in _GONE else None


def directories_of(pattern: str) -> dict[str, str]:
    """Where something can come or go that matches an absolute path: directories, each with what of
    the pattern can be in it. Those above the first wildcard are one, the last of them."""
    if not is_pattern(pattern):
        above, _, name = pattern.rstrip("/").rpartition("/")
        return {above or "/": name}
    parts = pattern.strip("/").split("/")
    first = next((depth for depth, part in enumerate(parts) if is_pattern(part)), len(parts) - 1)
    directories = {}
    for depth in range(first, len(parts)):
        above = "/" + "/".join(parts[:depth])
        for directory in matching_cgroups(above) if depth > first else [above]:
            directories[directory] = parts[depth]
    return directories
