"""Where programs are attached: targets, as values. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class XdpMode(StrEnum):
    """Where in the receive path an XDP program runs."""

    AUTO = "auto"
    """In the driver where it can, else in the generic path, which is said aloud."""
    NATIVE = "native"
    GENERIC = "generic"


def is_pattern(text: str) -> bool:
    """Whether a name stands for all that match it, as in a shell."""
    return "*" in text or "?" in text or "[" in text


@dataclass(frozen=True, slots=True)
class CgroupTarget:
    """A cgroup v2 directory: absolute, or relative to the cgroup2 mount; or a pattern of them."""

    path: str

    @property
    def is_pattern(self) -> bool:
        return is_pattern(self.path)


CLSACT_PRIORITY = 49152
"""Where filters of tc stand that say nothing of it: what the kernel gives to the first."""


@dataclass(frozen=True, slots=True)
class InterfaceTarget:
    """A network interface by name, in the daemon's network namespace or in another; or a pattern of
    names."""

    name: str
    netns: str | None = None
    """A name under /run/netns or an absolute path to a namespace file."""
    mode: XdpMode = XdpMode.AUTO
    """For XDP only."""
    priority: int | None = None
    """For clsact only, where it is always set."""

    @property
    def is_pattern(self) -> bool:
        return is_pattern(self.name)


@dataclass(frozen=True, slots=True)
class NetnsTarget:
    """A network namespace: a name under /run/netns or an absolute path."""

    netns: str


@dataclass(frozen=True, slots=True)
class NetfilterTarget:
    """A place among the netfilter hooks of a network namespace."""

    family: str
    """Of `NF_FAMILIES`."""
    hook: str
    """Of `NF_HOOKS`."""
    priority: int
    netns: str | None = None
    defrag: bool = False
    """Packets are put together before the program sees them."""


@dataclass(frozen=True, slots=True)
class MapTarget:
    """A map: of sockets, whose messages a program judges; or one that an iterator goes through."""

    name: str
    """Its pin name; an object's own name where `resolve` knows it."""


@dataclass(frozen=True, slots=True)
class FunctionTarget:
    """A function of the kernel; for kprobe.multi a pattern of their names."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class TracepointTarget:
    name: str
    """``group/name``; for raw tracepoints the name alone."""


@dataclass(frozen=True, slots=True)
class BinaryTarget:
    """A place in an executable or a library."""

    path: str
    """Absolute."""
    symbol: str = ""
    """For uprobe.multi a pattern of symbols. Empty: ``offset`` counts from the file's start."""
    offset: int = 0
    pid: int | None = None
    """Of this process only."""


@dataclass(frozen=True, slots=True)
class PerfEventTarget:
    """A perf event that runs the program each time it is due."""

    event: str
    """As `PERF_EVENTS` has it."""
    frequency: int = 0
    """Times a second; 0: ``period`` says it."""
    period: int = 0
    """Of how many events one runs the program."""
    cpu: int | None = None
    """None: each CPU, unless ``pid`` is set."""
    pid: int | None = None
    """This process only; None: all."""


@dataclass(frozen=True, slots=True)
class IteratorTarget:
    """What an iterator goes through, where that is no map of the user's."""

    name: str
    """As the section has it: ``task``, ``bpf_map``."""


Target = (
    CgroupTarget
    | InterfaceTarget
    | NetnsTarget
    | NetfilterTarget
    | MapTarget
    | FunctionTarget
    | TracepointTarget
    | BinaryTarget
    | PerfEventTarget
    | IteratorTarget
)

PERF_EVENTS = {
    "cpu-cycles": (0, 0),
    "instructions": (0, 1),
    "cache-references": (0, 2),
    "cache-misses": (0, 3),
    "branch-instructions": (0, 4),
    "branch-misses": (0, 5),
    "cpu-clock": (1, 0),
    "task-clock": (1, 1),
    "page-faults": (1, 2),
    "context-switches": (1, 3),
    "cpu-migrations": (1, 4),
}
"""By name, as perf(1) has it: ``type`` and ``config`` of perf_event_open(2)."""

NF_FAMILIES = {"ipv4": 2, "ipv6": 10}
NF_HOOKS = {"prerouting": 0, "local_in": 1, "forward": 2, "local_out": 3, "postrouting": 4}
"""``NFPROTO_*`` and ``NF_INET_*`` of include/uapi/linux/netfilter.h."""
