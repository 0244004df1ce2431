"""What is: pins, programs, links and targets, as the kernel and bpffs tell it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bpfkeeperd.layout import LinkKey
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
    inner: InnerInfo | None = None
    """Of a map-in-map, where it is known."""
    astray: tuple[int, ...] = ()
    """Places in the wanted contents of what is not there as wanted, of entries that are watched."""


@dataclass(frozen=True, slots=True)
class ObservedLink:
    info: LinkInfo
    pinned: bool = True
    """False: the pin is gone, a descriptor that the daemon holds keeps the link alive; or the
    record of a filter of tc is gone, or is of another program than it runs."""


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
    targets: Mapping[Target, int | str] = field(default_factory=dict)
    """A cgroup's ID, an interface's index, or why there is none."""
    map_names: Mapping[int, str] = field(default_factory=dict)
    """Maps in use by kept programs that are not pinned under their name: ID to kernel name."""
    empty_links: tuple[str, ...] = ()
    """Directories for links without any link, below that of all links."""
    orders: Mapping[Place, tuple[Neighbour, ...]] = field(default_factory=dict)
    """Who is at a hook that programs share, in the order in which they run: where the manifest says
    anything of the order."""
    arrays: tuple[str, ...] = ()
    """Pin names of the program arrays that are kept for the programs of one object alone."""
