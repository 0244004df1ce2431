"""Descriptors that a daemon holds of everything it keeps.

A pin is one reference and can be removed by hand or with its whole bpffs. A held descriptor keeps a
map with its contents, a link with its program, and a program alive until the pin is restored.
"""

import os
from collections.abc import Collection
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from bpfkeeperd import kernel
from bpfkeeperd.layout import Layout, LinkKey, StubKey
from bpfkeeperd.observed import Observed
from bpfkeeperd.pinnotes import PinNote, read_note
from bpfkeeperd.state import LinkInfo, MapInfo, ProgramInfo
from bpfkeeperd.targetnames import is_netfilter

ProgramPlace = tuple[str, str, str]
"""Object, digest, program: the names of a program's pin."""


class Held:
    """Maps by name, links and stubs by key, programs by place; a context manager that closes them
    all."""

    __slots__ = ("_links", "_maps", "_notes", "_programs", "_stubs", "homes", "undecided")

    def __init__(self) -> None:
        self._maps: dict[str, tuple[int, int]] = {}  # name: (map ID, descriptor)
        self._links: dict[LinkKey, tuple[int, int, int]] = {}  # link ID, descriptor, type
        self._stubs: dict[StubKey, tuple[int, int, int]] = {}  # stub ID, its and its array's fd
        self._notes: dict[LinkKey, PinNote] = {}
        self._programs: dict[ProgramPlace, tuple[int, int]] = {}
        self.homes: dict[int, tuple[int, int]] = {}
        """Link ID to the network namespace (device, inode) that the link was found in."""
        self.undecided: frozenset[str] = frozenset()
        """Maps that came from the service manager, and are held whatever is pinned."""

    def take_map(self, name: str, fd: int) -> None:
        """Takes over a descriptor that the service manager kept under this name."""
        self._maps[name] = (kernel.map_info(fd).id, fd)
        self.undecided |= {name}

    def take_link(self, key: LinkKey, fd: int) -> None:
        """Takes over a descriptor that the service manager kept under this key."""
        info = kernel.link_info(fd)
        self._links[key] = (info.id, fd, info.type)

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """ID and descriptor of each map; the descriptors stay this object's."""
        return dict(self._maps)

    @property
    def links(self) -> dict[LinkKey, tuple[int, int, int]]:
        """ID, descriptor and type of each link; the descriptors stay this object's."""
        return dict(self._links)

    def undecided_ids(self) -> dict[str, int]:
        return {name: self._maps[name][0] for name in self.undecided}

    def map_fd(self, name: str, map_id: int) -> int | None:
        """The held descriptor, if it is of this map; it stays this object's."""
        held = self._maps.get(name)
        return held[1] if held and held[0] == map_id else None

    def link_fd(self, key: LinkKey, link_id: int) -> int | None:
        """The held descriptor, if it is of this link; it stays this object's."""
        held = self._links.get(key)
        return held[1] if held and held[0] == link_id else None

    def stub_fds(self, key: StubKey) -> tuple[int, int] | None:
        """The held descriptors of a stub and of its array; they stay this object's."""
        held = self._stubs.get(key)
        return (held[1], held[2]) if held else None

    def stub_keys(self) -> set[StubKey]:
        return set(self._stubs)

    def note(self, key: LinkKey) -> PinNote | None:
        """What was noted on the pin of a held link."""
        return self._notes.get(key)

    def program_fd(self, place: ProgramPlace) -> int | None:
        """The held descriptor; it stays this object's."""
        held = self._programs.get(place)
        return held[1] if held else None

    def program_by_id(self, program_id: int) -> int | None:
        """The held descriptor of a program by its ID; it stays this object's."""
        return next((fd for held_id, fd in self._programs.values() if held_id == program_id), None)

    def program_info(self, place: ProgramPlace) -> ProgramInfo | None:
        """Of a program that is held, pinned or not."""
        held = self._programs.get(place)
        return kernel.program_info(held[1]) if held else None

    def map_info(self, name: str) -> MapInfo | None:
        """Of the map that is held under a name, pinned or not."""
        held = self._maps.get(name)
        return kernel.map_info(held[1]) if held else None

    def link_infos(self, besides: Collection[LinkKey]) -> dict[LinkKey, LinkInfo]:
        """Of the held links that are not among those found pinned."""
        return {
            key: kernel.link_info(held[1])
            for key, held in self._links.items()
            if key not in besides
        }

    def follow(
        self,
        observed: Observed,
        layout: Layout,
        settled: Collection[str] = (),
        differing: Collection[str] = (),
    ) -> None:
        """Takes hold of what is pinned now, and lets go of maps that nobody wants any more: they
        are not observed, nor among the ``settled`` ones.

        What lost its pin stays held, also where somebody pinned a map in its place that is not as
        the manifest wants it (``differing``): nothing else may hold the former one. A link is let
        go by `drop_link`, when it is detached.
        """
        for name in self._maps.keys() - observed.maps.keys() - set(settled) - self.undecided:
            os.close(self._maps.pop(name)[1])
        for name, found in observed.maps.items():
            held = self._maps.get(name)
            if found.pinned is None or (held and held[0] == found.pinned.id):
                continue
            if held and (name in differing or name in self.undecided):
                continue
            opened = kernel.pinned_map(layout.map(name))
            if opened and opened[1].id != found.pinned.id:  # the next look judges that one
                os.close(opened[0])
            elif opened:
                if held:
                    os.close(held[1])
                self._maps[name] = (opened[1].id, opened[0])
        for key, link in observed.links.items():
            held_link = self._links.get(key)
            if not link.pinned or not link.info.id or (held_link and held_link[0] == link.info.id):
                continue
            fd = kernel.pinned(layout.link_at(key), kernel.PinKind.LINK)
            if fd is not None:
                self.drop_link(key)
                self._links[key] = (link.info.id, fd, link.info.type)
                if is_netfilter(key) and (noted := read_note(layout.link_at(key))):
                    self._notes[key] = noted

        self._follow_stubs(observed, layout)
        self._follow_programs(observed, layout)

    def _follow_stubs(self, observed: Observed, layout: Layout) -> None:
        for key in self._stubs.keys() - observed.stubs.keys():
            self._drop_stub(key)
        for key, stub in observed.stubs.items():
            held = self._stubs.get(key)
            if not (stub.prog_id and stub.pinned) or (held and held[0] == stub.prog_id):
                continue
            with ExitStack() as stack:
                fds = list[int]()
                for name, kind in (("stub", kernel.PinKind.PROGRAM), ("slot", kernel.PinKind.MAP)):
                    fd = kernel.pinned(f"{layout.stub_at(key)}/{name}", kind)
                    if fd is not None:
                        stack.callback(os.close, fd)
                        fds.append(fd)
                if len(fds) == 2:
                    stack.pop_all()
                    self._drop_stub(key)
                    self._stubs[key] = (stub.prog_id, fds[0], fds[1])

    def _drop_stub(self, key: StubKey) -> None:
        held = self._stubs.pop(key, None)
        if held:
            os.close(held[1])
            os.close(held[2])

    def _follow_programs(self, observed: Observed, layout: Layout) -> None:
        """Those that are not wanted any more are let go of: nothing else would free them."""
        found = {
            (name, digest, program): info.id
            for name, digests in observed.programs.items()
            for digest, programs in digests.items()
            for program, info in programs.items()
        }
        for place in [
            place for place, held in self._programs.items() if found.get(place) != held[0]
        ]:
            os.close(self._programs.pop(place)[1])
        for place in found.keys() - self._programs.keys():
            path = f"{layout.objects}/{'/'.join(place)}"
            fd = kernel.pinned(path, kernel.PinKind.PROGRAM)
            if fd is not None:
                self._programs[place] = (found[place], fd)

    def drop_link(self, key: LinkKey) -> None:
        """Lets go of a link that was detached."""
        self._notes.pop(key, None)
        held = self._links.pop(key, None)
        if held:
            os.close(held[1])

    def close(self) -> None:
        for held in (self._maps, self._links, self._programs):
            for each in held.values():
                os.close(each[1])
        self._programs.clear()
        for key in list(self._stubs):
            self._drop_stub(key)
        self._maps.clear()
        self._links.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
