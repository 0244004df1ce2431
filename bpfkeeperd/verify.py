"""Has the verifier judge all that a plan would load, and leaves everything as it is.

Nothing is pinned or attached, and what is kept is only read. That takes care where loading alone
writes: libbpf fills the slots that an object declares, and the first program that is loaded with a
map of programs decides for ever which kind of them the map takes.
"""

import os
from contextlib import ExitStack
from dataclasses import dataclass

from bpfkeeperd import kernel
from bpfkeeperd.actions import LoadObject
from bpfkeeperd.create import create_map
from bpfkeeperd.desired import WantedMap
from bpfkeeperd.entries import Manifest
from bpfkeeperd.errors import KeeperError, ObjectError
from bpfkeeperd.keeper import Look
from bpfkeeperd.layout import Layout
from bpfkeeperd.load import Loaded, OpenObject
from bpfkeeperd.maptypes import CPUMAP, DEVMAP, DEVMAP_HASH, PROG_ARRAY
from bpfkeeperd.observed import ObservedMap
from bpfkeeperd.sources import read_sources
from bpfkeeperd.state import counted
from bpfkeeperd.steps import no_failpoint
from bpfkeeperd.trust import NOBODY_ELSE, Trust

_OF_PROGRAMS = frozenset({PROG_ARRAY, DEVMAP, DEVMAP_HASH, CPUMAP})
"""Map types that have an owner: the kind of programs that was loaded with them first."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the verifier says of an object."""

    object: str
    programs: int = 0
    instructions: int = 0
    """That the verifier went through; of a kernel that does not tell, those of the programs."""
    fault: str = ""
    log: str = ""

    def __str__(self) -> str:
        if self.fault:
            return f"REFUSED: {self.fault}"
        programs = counted(self.programs, "program")
        return f"object {self.object}: verified: {programs}, {self.instructions} instructions"


def verify(manifest: Manifest, seen: Look, trust: Trust = NOBODY_ELSE) -> tuple[Judged, ...]:
    """Loads every object that the plan would load, and lets go of it.

    Raises:
        KernelError: something that is pinned cannot be read.
    """
    judged: list[Judged] = []
    with read_sources(manifest, {}, trust) as sources:
        for change in seen.plan.changes:
            if not change.loads:
                continue
            with Loaded(change) as loaded, ExitStack() as stack:
                kept = _Kept(seen, Layout(manifest.pin_root), stack)
                try:
                    loaded.create_maps(no_failpoint)
                except KeeperError as error:
                    names = [load.object.name for load in change.loads]
                    judged += (Judged(name, fault=f"object {name}: {error}") for name in names)
                    continue
                judged += (_judge(loaded, load, sources.open, kept) for load in change.loads)
    return tuple(judged)


def _judge(loaded: Loaded, load: LoadObject, open_object: OpenObject, kept: "_Kept") -> Judged:
    wanted = load.object
    try:
        opened = loaded.open(load, open_object, kept.map_fd, no_failpoint)
    except KeeperError as error:
        detail = error.detail if isinstance(error, ObjectError) else ""
        return Judged(wanted.name, fault=str(error), log=detail)
    try:
        opened.load()
    except ObjectError as error:
        return Judged(wanted.name, fault=f"object {wanted.name}: {error}", log=error.detail)
    loaded.loaded(load, None)
    stats = [kernel.program_stats(opened.program_fd(program)) for program in wanted.programs]
    instructions = sum(found.verified or found.instructions for found in stats)
    return Judged(wanted.name, len(stats), instructions)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Kept maps for objects that are loaded for a moment."""

    seen: Look
    layout: Layout
    stack: ExitStack

    def map_fd(self, name: str) -> int:
        """The descriptor of a kept map, or of a new one like it where loading would write to it."""
        wanted, fd = self.seen.desired.maps[name], self._open(name)
        if self._would_be_written(wanted, fd):
            fd = create_map(name, wanted.spec, wanted.definition)
            self.stack.callback(os.close, fd)
        return fd

    def _would_be_written(self, wanted: WantedMap, fd: int) -> bool:
        if wanted.spec.type not in _OF_PROGRAMS:
            return False
        return wanted.slotted or not kernel.map_has_owner(fd)

    def _open(self, name: str) -> int:
        found = self.seen.observed.maps.get(name, ObservedMap())
        if found.pinned:
            opened = kernel.pinned_map(self.layout.map(found.source or name))
            if opened:
                self.stack.callback(os.close, opened[0])
                return opened[0]
        elif found.lost:
            fd = kernel.map_by_id(found.lost.id)
            if fd is not None:
                self.stack.callback(os.close, fd)
                return fd
        raise KeeperError(f"map {name} went away: try again")
