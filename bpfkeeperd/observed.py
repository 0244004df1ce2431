"""What is: pins, programs, links and targets, as the kernel and bpffs tell it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bpfkeeperd.layout import LinkKey, StubKey
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.state import InnerInfo, LinkInfo, MapInfo, Neighbour, ProgramInfo
from bpfkeeperd.targets import Target

Place = tuple[Target, int]
"""A hook: the target and the attach type."""


@dataclass(frozen=True, slots=True)
class ObservedMap:
    """What is found under the name of a kept map."""

    pinned: MapInfo | None = None
    lost: MapInfo | None = None
    """Nothing is pinned, but the map that was is still alive."""
    fault: str = ""
    """What is pinned cannot be used, and why."""
    layouts: tuple[str | None, str | None] = (None, None)
    """Of key and value, of the map that is pinned or lost."""
    source: str = ""
    """It is pinned, but under this former name."""
    stored_id: int = 0
    """Another map that the service manager kept under this name, where nobody knows which of the
    two is to stay; 0: there is none."""
    inner: InnerInfo | None = None
    """Of a map-in-map, where it is known."""
    astray: tuple[int, ...] = ()
    """Places in the wanted contents of what is not there as wanted, of entries that are watched."""
    rights: Rights | None = None
    """Of its pin."""


@dataclass(frozen=True, slots=True)
class ObservedLink:
    info: LinkInfo
    pinned: bool = True
    """False: the pin is gone, a descriptor that the daemon holds keeps the link alive; or the
    record of a filter of tc is gone, or is of another program than it runs."""
    stub: int = 0
    """The ID of the stub that it runs; ``info.prog_id`` is then the program that the stub calls."""


@dataclass(frozen=True, slots=True)
class ObservedStub:
    """A program that calls the one in the slot of a program array."""

    prog_id: int
    """Its own; 0 where it and its array are not both there."""
    slot_id: int
    """Of the array."""
    serves: int
    """The program in the slot; 0 for none."""
    pinned: bool = True
    """False: not all of it; descriptors that the daemon holds keep the rest alive."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A program that somebody else attached where the manifest wants one."""

    program: ProgramInfo
    link: LinkInfo | None
    """None: it was attached without a link (or see ``unclear``)."""
    sole: bool = False
    """Nothing can be attached beside it."""
    flags: int = 0
    """Of a cgroup without a link: how it was attached."""
    generic: bool = False
    """XDP: the mode."""
    unclear: bool = False
    """It has a link, but interface indexes repeat, and several links run it at this one."""
    same: bool = False
    """It is the same program as ours that is pinned."""

    def __str__(self) -> str:
        program = f"program {self.program.name} ID {self.program.id}"
        if self.link:
            return f"link ID {self.link.id} of somebody else ({program})"
        return f"{program} of somebody else, attached without a link,"


@dataclass(frozen=True, slots=True)
class Observed:
    maps: Mapping[str, ObservedMap] = field(default_factory=dict)
    """By pin name; for each map of the manifest."""
    programs: Mapping[str, Mapping[str, Mapping[str, ProgramInfo]]] = field(default_factory=dict)
    """Escaped object name, digest, escaped program name. Of an object's digests the wanted one is
    the first: entries that name a program mean that one."""
    unpinned_programs: tuple[tuple[str, str, str], ...] = ()
    """Of those programs, the ones whose pin is gone and which a held descriptor keeps alive: object
    and program escaped, the digest between them."""
    links: Mapping[LinkKey, ObservedLink] = field(default_factory=dict)
    stubs: Mapping[StubKey, ObservedStub] = field(default_factory=dict)
    targets: Mapping[Target, int | str] = field(default_factory=dict)
    """A cgroup's ID, an interface's index, or why there is none."""
    map_names: Mapping[int, str] = field(default_factory=dict)
    """Maps in use by kept programs that are not pinned under their name: ID to kernel name."""
    empty_links: tuple[str, ...] = ()
    """Directories for links without any link, below that of all links."""
    foreign: Mapping[LinkKey, tuple[Foreign, ...]] = field(default_factory=dict)
    """By attachment; see `observeforeign.with_foreign` for when they are looked for."""
    orders: Mapping[Place, tuple[Neighbour, ...]] = field(default_factory=dict)
    """Who is at a hook that programs share, in the order in which they run: where the manifest says
    anything of the order."""
    arrays: tuple[str, ...] = ()
    """Pin names of the program arrays that are kept for the programs of one object alone."""
