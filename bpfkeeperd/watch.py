"""Notices that something may have changed, as it happens: the daemon looks then, not only when its
timer says so.

What is noticed is not looked at: a look tells what is. Events that nobody waits for cost a look.
"""

import os
import select
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bpfkeeperd import kernel
from bpfkeeperd.attach import cgroup_path
from bpfkeeperd.desired import Desired
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.layout import OWN_DIRECTORY, Layout
from bpfkeeperd.matches import directories_of
from bpfkeeperd.observed import Observed
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, Target

QUIET_SECONDS = 0.02
"""So long nothing may happen before a look begins."""
PATIENCE_SECONDS = 0.1
"""So long a look waits at most."""
GAP_SHARE = 4.0
"""After a look that found nothing to do, the next waits so many times as long as that one took:
what happens all the time and concerns nobody must not cost more than a fifth of a CPU."""
GAP_MAX_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Places:
    """Where changes matter."""

    netns: frozenset[str | None]
    """Paths of network namespaces; None is the daemon's own."""
    directories: Mapping[str, frozenset[str]]
    """With the names, or patterns of names, that matter in each."""
    root: str
    """The pin root."""


def places(wanted: Desired, observed: Observed, layout: Layout) -> Places:
    """Where what is wanted and what is pinned can change.

    ``wanted`` is with its patterns, not with what matches them.
    """
    targets = [
        attachment.target
        for wanted_object in wanted.objects.values()
        for attachment in wanted_object.attachments
    ]
    targets += [target for _, _, target, _ in wanted.unread_attachments()]
    targets += [
        target
        for wanted_map in wanted.maps.values()
        if wanted_map.enforce
        for content in wanted_map.contents
        if (target := content.target)
    ]
    netns = _netns(targets)
    found: dict[str, set[str]] = {}
    for directory, name in (*_cgroup_names(targets), *_pin_names(observed, layout)):
        found.setdefault(directory, set()).add(name)
    for path in netns:
        if path:
            found.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
    directories = {directory: frozenset(names) for directory, names in found.items()}
    return Places(frozenset(netns), directories, layout.root)


def _netns(targets: Iterable[Target]) -> set[str | None]:
    """Those of interfaces. A namespace of a process must not be held longer than it lives, as
    listening in it would: what happens there is found by the timer."""
    paths = {
        kernel.netns_path(target.netns) if target.netns else None
        for target in targets
        if isinstance(target, InterfaceTarget)
    }
    return {path for path in paths if path is None or not path.startswith("/proc/")}


def _cgroup_names(targets: Iterable[Target]) -> Iterator[tuple[str, str]]:
    """Where a wanted cgroup comes or goes, and under which name."""
    paths = dict.fromkeys(target.path for target in targets if isinstance(target, CgroupTarget))
    mount = kernel.cgroup2_mount() if paths else None
    for path in paths:
        place = cgroup_path(path, mount)
        if place is not None:
            yield from directories_of(place).items()


def _pin_names(observed: Observed, layout: Layout) -> Iterator[tuple[str, str]]:
    """Where pins come and go, and under which names. What others pin is nobody's business."""
    yield layout.root, OWN_DIRECTORY
    for name in observed.maps:
        directory, _, pin = layout.map(name).rpartition("/")
        yield directory, pin
    for directory in (layout.own, layout.objects, layout.links, layout.attached, layout.stubs):
        yield directory, "*"
    for name, digests in observed.programs.items():
        yield f"{layout.objects}/{name}", "*"
        for digest in digests:
            yield f"{layout.objects}/{name}/{digest}", "*"
    for (name, program, _), link in observed.links.items():
        directory = layout.links if link.info.id else layout.attached
        yield f"{directory}/{name}", "*"
        yield f"{directory}/{name}/{program}", "*"
    for name, program in observed.stubs:
        yield f"{layout.stubs}/{name}", "*"
        yield f"{layout.stubs}/{name}/{program}", "*"


class Watch:
    """Descriptors for a poll loop, and when it should look. It holds them until `close`."""

    __slots__ = (
        "_check_at",
        "_directories",
        "_first",
        "_mounted",
        "_mounts",
        "_not_before",
        "_places",
        "_sockets",
    )

    def __init__(self) -> None:
        self._directories = kernel.Directories()
        self._mounts = kernel.mount_events()
        self._sockets: dict[str | None, tuple[tuple[int, int], socket.socket]] = {}
        self._places: Places | None = None
        self._mounted: object = None
        self._first: float | None = None
        self._check_at = 0.0
        self._not_before = 0.0

    def register(self, poll: select.poll) -> None:
        """Adds the descriptors to a poll, unless something was noticed already."""
        if self._first is None:
            poll.register(self._mounts, select.POLLPRI | select.POLLERR)
            poll.register(self._directories.fd, select.POLLIN)
            for _, found in self._sockets.values():
                poll.register(found.fileno(), select.POLLIN)

    def owns(self, fd: int) -> bool:
        sockets = (found.fileno() for _, found in self._sockets.values())
        return fd in (self._mounts, self._directories.fd, *sockets)

    def notice(self, fd: int, now: float) -> None:
        """One of the descriptors is ready."""
        if fd == self._mounts and self._mounted == self._look_at_mounts():
            return  # something else was mounted
        if fd == self._directories.fd and not self._directories.drain():
            return  # something else came or went
        if self._first is None:
            self._first = now
            self._check_at = now + QUIET_SECONDS

    @property
    def wake_at(self) -> float | None:
        """When `due` has to be asked again; None: when something was noticed."""
        return None if self._first is None else max(self._check_at, self._not_before)

    def due(self, now: float) -> bool:
        """Whether to look now."""
        wake_at = self.wake_at
        if self._first is None or wake_at is None or now < wake_at:
            return False
        if self._drain() and now < self._first + PATIENCE_SECONDS:
            self._check_at = now + QUIET_SECONDS
            return False
        self._first = None
        return True

    def _look_at_mounts(self) -> object:
        """What a mount could change of what matters."""
        if self._places is None:
            return None
        paths = [self._places.root, *(path for path in self._places.netns if path)]
        try:
            mount = kernel.cgroup2_mount()
        except OSError:  # no descriptor left: whatever there is, it is not what was there before
            return object()
        return mount, [(path, _identity(path)) for path in sorted(paths)]

    def _drain(self) -> bool:
        found = [kernel.drain(found) for _, found in self._sockets.values()]
        return any([self._directories.drain(), *found])

    def looked(self, now: float, seconds: float, *, idle: bool) -> None:
        """Takes note of a look that took so long; ``idle``: there was nothing to do."""
        self._not_before = now + min(GAP_SHARE * seconds, GAP_MAX_SECONDS) if idle else 0.0

    def follow(self, wanted: Places, now: float) -> str:
        """Watches these places and no others; returns what cannot be watched, and why.

        What is watched anew may have changed before: that is noticed like an event.
        """
        problem = ""
        self._places = wanted
        self._mounted = self._look_at_mounts()
        try:
            added = self._directories.follow(wanted.directories)
        except KeeperError as error:
            added, problem = False, str(error)
        for path in self._sockets.keys() - wanted.netns:
            self._sockets.pop(path)[1].close()
        for path in wanted.netns:
            added = self._listen(path) or added
        if added and self._first is None:
            self._first = now
            self._check_at = now + QUIET_SECONDS
        return problem

    def _listen(self, path: str | None) -> bool:
        """Listens in a network namespace; whether that is new. A name can get another one."""
        identity = _identity(path or "/proc/self/ns/net")
        known = self._sockets.get(path)
        if known and known[0] == identity:
            return False
        if known:
            self._sockets.pop(path)[1].close()
        if identity is None:
            return False
        try:
            self._sockets[path] = (identity, kernel.interface_events(path))
        except KeeperError:  # it went away: that comes as an event of its directory
            return False
        return True

    def close(self) -> None:
        self._directories.close()
        os.close(self._mounts)
        for _, found in self._sockets.values():
            found.close()
        self._sockets.clear()


def _identity(path: str) -> tuple[int, int] | None:
    """What is at a path now; None: nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
