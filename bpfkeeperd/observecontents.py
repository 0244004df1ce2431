"""Looks into maps: which entries are not as the manifest has them, what maps of maps take."""

import functools
import os
from contextlib import ExitStack
from dataclasses import replace

from bpfkeeperd import kernel
from bpfkeeperd.compare import differences
from bpfkeeperd.desired import Desired, WantedMap
from bpfkeeperd.enactmaps import kept_map, pinned_program
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.fill import Resolver, astray
from bpfkeeperd.held import Held
from bpfkeeperd.inner import inner_infos
from bpfkeeperd.layout import Layout
from bpfkeeperd.maptypes import BY_NUMBER
from bpfkeeperd.observed import Observed, ObservedMap

_OUTER_TYPES = frozenset(known.number for known in BY_NUMBER.values() if known.outer)


def with_contents(
    desired: Desired, layout: Layout, held: Held, observed: Observed
) -> dict[str, ObservedMap]:
    """The observed maps with what they hold, as far as the manifest cares, and what maps of maps
    take."""
    maps = observed.maps
    nested = [
        info.id
        for name, wanted in desired.maps.items()
        if wanted.spec.type in _OUTER_TYPES and (info := maps[name].pinned or maps[name].lost)
    ]
    inner = inner_infos(nested) if nested else {}
    seen = dict(maps)
    for name, wanted in desired.maps.items():
        info = maps[name].pinned or maps[name].lost
        if info is None:
            continue
        if wanted.spec.type in _OUTER_TYPES:
            seen[name] = replace(seen[name], inner=inner.get(info.id))
        if wanted.contents and (wanted.enforce or wanted.parts or wanted.fillers):
            seen[name] = replace(seen[name], astray=_astray(layout, observed, held, wanted))
    return seen


def _astray(layout: Layout, observed: Observed, held: Held, wanted: WantedMap) -> tuple[int, ...]:
    """Places of the wanted contents that are not there; a map of another form is not looked at."""
    found = observed.maps[wanted.name]
    info = found.pinned or found.lost
    if info is None or differences(wanted.spec, info):
        return ()
    with ExitStack() as stack:

        def map_fd(name: str) -> int:
            lost = observed.maps[name].lost
            by_id = None
            if lost and held.map_fd(name, lost.id) is None:
                by_id = kernel.map_by_id(lost.id)
            fd, opened = kept_map(layout, observed, held, name) if by_id is None else (by_id, True)
            if opened:
                stack.callback(os.close, fd)
            return fd

        def program_fd(object_name: str, program: str) -> int:
            fd = pinned_program(layout, observed, object_name, program)
            if fd is None:
                raise KeeperError(f"program {object_name}/{program} is not loaded")
            stack.callback(os.close, fd)
            return fd

        try:
            resolver = Resolver(program_fd=functools.cache(program_fd), map_fd=map_fd)
            fd = map_fd(wanted.name)
            return tuple(astray(fd, wanted.spec, wanted.contents, resolver))
        except KeeperError:  # it went away meanwhile: the next look sees that
            return ()
