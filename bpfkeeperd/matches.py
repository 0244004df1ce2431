"""What the patterns of a manifest match now."""

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


def with_matches(desired: Desired) -> Desired:
    """What is wanted now: an attachment for each match in the place of each pattern."""
    patterns = pattern_targets(desired)
    if not patterns:
        return desired
    mount = kernel.cgroup2_mount()
    return expand(desired, find_matches(patterns, mount), mount)


def find_matches(patterns: Iterable[Target], mount: str | None) -> dict[Target, tuple[Target, ...]]:
    """Each pattern's matches, in order; the interfaces of a network namespace are read once.

    In a namespace that cannot be entered a pattern matches itself, so that it is looked for and
    the reason is told.
    """
    found: dict[Target, tuple[Target, ...]] = {}
    names: dict[str | None, list[str] | None] = {}
    for pattern in patterns:
        match pattern:
            case CgroupTarget(path):
                place = cgroup_path(path, mount)
                top = len(place) - len(path) if place else 0
                paths = [where[top:] for where in matching_cgroups(place)] if place else []
                found[pattern] = tuple(replace(pattern, path=where) for where in paths)
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


def _interfaces(netns: str | None) -> list[str] | None:
    try:
        return sorted(kernel.interfaces(kernel.netns_path(netns) if netns else None))
    except KernelError:
        return None


def matching_cgroups(pattern: str) -> list[str]:
    """The directories that match an absolute path, component by component."""
    found = ["/"]
    for part in pattern.strip("/").split("/"):
        if is_pattern(part):
            found = [
                f"{above.rstrip('/')}/{name}"
                for above in found
                for name in _directories(above)
                if fnmatchcase(name, part)
            ]
        else:
            found = [f"{above.rstrip('/')}/{part}" for above in found]
    return [path for path in found if os.path.isdir(path)]


def _directories(path: str) -> list[str]:
    """Names, in order; none where there is nothing to look into."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


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
