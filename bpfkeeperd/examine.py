"""Looks at what the daemon needs of this machine; changes nothing, and leaves nothing behind."""

import os
import resource
import stat
import sys
from collections.abc import Iterator, Mapping

from bpfkeeperd import kernel
from bpfkeeperd.control import control_path, daemon_process
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.desired import ObjectSource
from bpfkeeperd.entries import DEFAULT_PIN_ROOT, Manifest
from bpfkeeperd.errors import KeeperError, PinRootError
from bpfkeeperd.findings import (
    DaemonFinding,
    Findings,
    HookFinding,
    ManifestFinding,
    Needs,
    PlaceFinding,
)
from bpfkeeperd.hooks import HOOKS, PLACED_HOOKS, STRUCT_OPS, Hook
from bpfkeeperd.lock import is_held
from bpfkeeperd.manifest import read_manifest
from bpfkeeperd.maptypes import MAP_TYPES
from bpfkeeperd.needs import needs
from bpfkeeperd.pinroot import check_pin_root
from bpfkeeperd.sources import read_sources
from bpfkeeperd.trust import NOBODY_ELSE, Trust

_SETTINGS = (
    *("kernel.unprivileged_bpf_disabled", "kernel.perf_event_paranoid", "kernel.kptr_restrict"),
    "net.core.bpf_jit_enable",
)
_COUNTING = {
    (True, True): "in a scrape, hashes by a kfunc",
    (False, True): "in a scrape, hashes from time to time",
    (False, False): "in a scrape where the kernel has a number, else from time to time",
}
"""By `counting.Program.kfunc` and ``scans``."""


def examine(
    config: str, state_directory: str, run_directory: str, trust: Trust = NOBODY_ELSE
) -> Findings:
    """Everything; what cannot be found out is None there."""
    manifest, pin_root = _manifest(config, trust)
    may_make_maps = kernel.may_make_maps()
    counting, counting_fault = _counting()
    return Findings(
        kernel="{0.sysname} {0.release} {0.machine}".format(os.uname()),
        user=os.geteuid(),
        python=tuple(sys.version_info[:3]),
        libbpf=kernel.libbpf_version(),
        capabilities=kernel.effective_capabilities(),
        may_make_maps=may_make_maps,
        may_open_by_id=kernel.may_open_by_id(),
        perf_events=kernel.may_open_perf_event(),
        uprobes=kernel.may_open_perf_event("uprobe"),
        hooks=dict(_hooks()),
        map_types=_map_types() if may_make_maps else {},
        counting=counting,
        counting_fault=counting_fault,
        btf_fault=_fault_of("/sys/kernel/btf/vmlinux"),
        lockdown=_lockdown(),
        kernel_addresses=kernel.shows_kernel_addresses(),
        settings={name: _setting(name) for name in _SETTINGS},
        memory_to_cgroups=kernel.accounts_memory_to_cgroups() if may_make_maps else None,
        descriptors_max=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        memlock_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        pin_root=_pin_root(pin_root, trust),
        cgroup2=kernel.cgroup2_mount(),
        tracefs=_tracefs(),
        state_directory=_directory(state_directory),
        run_directory=_directory(run_directory),
        systemd=os.path.isdir("/run/systemd/system"),
        daemon=_daemon(pin_root, control_path(run_directory, config)),
        manifest=manifest,
    )


def _manifest(config: str, trust: Trust) -> tuple[ManifestFinding, str]:
    """What is found of the manifest, and the pin root."""
    if not os.path.lexists(config):
        return ManifestFinding(config, there=False), DEFAULT_PIN_ROOT
    try:
        manifest = read_manifest(config, trust)
        return ManifestFinding(config, there=True, needs=_needs(manifest, trust)), manifest.pin_root
    except KeeperError as error:
        first, *_ = str(error).splitlines()
        return ManifestFinding(config, there=True, fault=first), DEFAULT_PIN_ROOT


def _needs(manifest: Manifest, trust: Trust) -> Needs:
    with read_sources(manifest, {}, trust) as sources:
        found = sources.found.items()
        specs = {name: one.spec for name, one in found if isinstance(one, ObjectSource)}
    return needs(manifest, specs)


def _counting() -> tuple[str, str]:
    """How maps are counted in a scrape, or else why not."""
    try:
        with MapCounter.open() as counter:
            return _COUNTING[counter.program.kfunc, counter.program.scans], ""
    except (KeeperError, OSError) as error:
        # One reason for each program: what is needed stands at the end.
        return "", str(error).rpartition("): ")[2]


def _hooks() -> Iterator[tuple[str, HookFinding]]:
    hooks: tuple[Hook, ...] = (*HOOKS, *PLACED_HOOKS, STRUCT_OPS)
    for hook in hooks:
        answer = kernel.can_attach(hook)
        yield hook.name, HookFinding(answer.can, answer.reason, answer.refused)


def _map_types() -> Mapping[str, bool | None]:
    return {known.name: kernel.has_map_type(known.number) for known in MAP_TYPES}


def _lockdown() -> str | None:
    text = _text("/sys/kernel/security/lockdown")
    if text is not None:
        return text.partition("[")[2].partition("]")[0]
    modules = _text("/sys/kernel/security/lsm")
    return None if modules is None else "this kernel has none"


def _setting(name: str) -> str | None:
    text = _text(f"/proc/sys/{name.replace('.', '/')}")
    return None if text is None else text.strip()


def _tracefs() -> str | None:
    place = kernel.tracefs_mount()
    return place if place and os.access(f"{place}/events", os.R_OK | os.X_OK) else None


def _pin_root(path: str, trust: Trust) -> PlaceFinding:
    try:
        there = check_pin_root(path, trust)
    except PinRootError as error:
        return PlaceFinding(path, fault=str(error))
    place = path if there else os.path.dirname(path)
    mount = kernel.mount_of(place)
    if mount is None:
        return PlaceFinding(path, fault="it is not in /proc/self/mountinfo: mount -t bpf bpf PATH")
    if "ro" in mount.options:
        fault = f"the bpffs at {mount.place} is read-only here: mount -o remount,rw {mount.place}"
        return PlaceFinding(path, fault=f"{fault}; under systemd see ProtectKernelTunables=")
    if not _may_write(place):
        return PlaceFinding(path, fault=f"{_whose(place)}: run as that user, or chown it")
    about = f"bpffs at {mount.place}, {_whose(place)}"
    if not there:
        about += ", still to be made"
    warning = ""
    if not mount.propagates and kernel.has_own_mounts():
        warning = (
            "mounts of the machine are not seen here: when the bpffs is mounted anew outside, the"
            " daemon goes on with this one"
        )
    return PlaceFinding(path, about=about, warning=warning)


def _whose(path: str) -> str:
    found = os.stat(path)
    return f"mode {stat.S_IMODE(found.st_mode):04o}, user {found.st_uid}"


def _may_write(path: str) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(path, os.W_OK | os.X_OK, effective_ids=effective)


def _directory(path: str) -> PlaceFinding:
    """One that the daemon makes where it is not there."""
    place = os.path.abspath(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        return PlaceFinding(path, fault=f"{place} is no directory: move it away")
    if not _may_write(place):
        return PlaceFinding(path, fault=f"{place} is not this user's to write ({_whose(place)})")
    return PlaceFinding(path, about=_whose(place) if place == path else "still to be made")


def _daemon(pin_root: str, control: str) -> DaemonFinding | None:
    pid = daemon_process(control)
    if pid is None:
        return DaemonFinding(None) if is_held(pin_root) else None
    variables = _environment(pid)
    watchdog, stores = (variables.get(name, "") for name in ("WATCHDOG_USEC", "FDSTORE"))
    return DaemonFinding(
        pid,
        kernel.effective_capabilities(pid),
        unit=_unit(pid),
        notifies="NOTIFY_SOCKET" in variables if variables else None,
        watchdog_seconds=int(watchdog) / 1e6 if watchdog.isdecimal() else 0.0,
        stores=int(stores) if stores.isdecimal() else 0,
    )


def _environment(pid: int) -> dict[str, str]:
    """Of a process; nothing where this user may not see it."""
    text = _text(f"/proc/{pid}/environ") or ""
    return {name: value for name, _, value in (part.partition("=") for part in text.split("\0"))}


def _unit(pid: int) -> str:
    """The service that a process runs in, by the name of its cgroup."""
    last = (_text(f"/proc/{pid}/cgroup") or "").strip().rpartition("/")[2]
    return last if last.endswith(".service") else ""


def _fault_of(path: str) -> str:
    """Why a file cannot be read."""
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        return error.strerror or "cannot be read"
    return ""


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return None
