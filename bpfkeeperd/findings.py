"""What `doctor` looks at, as it was found. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HookFinding:
    can: bool | None
    """None: nobody can tell without attaching."""
    reason: str = ""
    refused: bool = False
    """This process may not ask."""


@dataclass(frozen=True, slots=True)
class PlaceFinding:
    """A directory, or the one above it where it still has to be made."""

    path: str
    fault: str = ""
    """Why it cannot be used; empty: it can."""
    about: str = ""
    """What there is to say of it."""
    warning: str = ""
    """What may go wrong with it later."""


@dataclass(frozen=True, slots=True)
class DaemonFinding:
    """A daemon that keeps the pin root now."""

    pid: int | None
    """None: it is not known, but something holds the lock of the pin root."""
    capabilities: int | None = None
    unit: str = ""
    """Of the service manager; empty: it runs in none, or that is not known."""
    notifies: bool | None = None
    """It has a socket of the service manager; None: not for this user to see."""
    watchdog_seconds: float = 0.0
    stores: int = 0
    """Descriptors that the service manager keeps for it at most."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a manifest asks of the machine."""

    hooks: Mapping[str, str] = field(default_factory=dict)
    """Name of each hook to a program that is attached there."""
    map_types: Mapping[str, str] = field(default_factory=dict)
    """Name of each type to a map of it."""
    cgroups: str = ""
    """A program, or map, that names a cgroup; empty: none does. Likewise:"""
    other_netns: str = ""
    perf_events: str = ""
    uprobes: str = ""
    take_over: str = ""
    descriptors: int = 0
    """Of kept maps, programs and links, about as many as a daemon holds."""


@dataclass(frozen=True, slots=True)
class ManifestFinding:
    path: str
    there: bool
    fault: str = ""
    needs: Needs = field(default_factory=Needs)


@dataclass(frozen=True, slots=True)
class Findings:
    """None stands for what could not be found out everywhere."""

    kernel: str
    user: int
    python: tuple[int, ...]
    libbpf: str
    capabilities: int | None
    may_make_maps: bool | None
    may_open_by_id: bool | None
    perf_events: bool | None
    uprobes: bool | None
    hooks: Mapping[str, HookFinding]
    map_types: Mapping[str, bool | None]
    counting: str
    """How maps are counted in a scrape; empty: not at all, and why:"""
    counting_fault: str
    btf_fault: str
    """Why the kernel's BTF cannot be read; empty: it can."""
    lockdown: str | None
    kernel_addresses: bool | None
    settings: Mapping[str, str | None]
    """Of /proc/sys, by name."""
    memory_to_cgroups: bool | None
    descriptors_max: int
    memlock_bytes: int
    """RLIMIT_MEMLOCK; less than 0: no limit."""
    pin_root: PlaceFinding
    cgroup2: str | None
    tracefs: str | None
    state_directory: PlaceFinding
    run_directory: PlaceFinding
    systemd: bool
    """It is the service manager of this machine."""
    daemon: DaemonFinding | None
    manifest: ManifestFinding
