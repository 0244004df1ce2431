"""What was found becomes rows of `doctor`: what is there, what not, and what that means. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bpfkeeperd.capabilities import CAPABILITIES, Capability, held_text, is_held, lacking
from bpfkeeperd.findings import DaemonFinding, Findings, HookFinding, Needs

LEAST_PYTHON = (3, 11)
LEAST_LIBBPF = (1, 1)
FEW_DESCRIPTORS = 4096
"""As many maps, programs and links are soon kept."""


class Verdict(StrEnum):
    OK = "ok"
    LIMITED = "limited"
    """The daemon does its work, but for what the row says."""
    MISSING = "missing"
    """The daemon cannot do its work here."""
    UNKNOWN = "unknown"
    """It could not be found out, with the privileges at hand."""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    verdict: Verdict
    found: str
    without: str = ""
    """What does not work."""
    remedy: str = ""


def rows(found: Findings) -> list[Row]:
    """All of them, in the order in which they are shown."""
    return [
        *_manifest(found),
        Row("kernel", Verdict.OK, found.kernel),
        _hooks(found),
        _map_types(found),
        _counting(found),
        _btf(found),
        _lockdown(found),
        *(_capability(found, one) for one in CAPABILITIES),
        _perf_events(found),
        *_settings(found),
        _memory(found),
        _descriptors(found),
        _pin_root(found),
        _cgroup2(found),
        _tracefs(found),
        _libbpf(found),
        _python(found),
        *_directories(found),
        _daemon(found.daemon, systemd=found.systemd),
    ]


def is_fit(judged: Sequence[Row]) -> bool:
    """Whether the daemon could do its work."""
    return not any(row.verdict is Verdict.MISSING for row in judged)


def _manifest(found: Findings) -> Iterator[Row]:
    manifest = found.manifest
    if not manifest.there:
        text = f"none at {manifest.path}: judged without one"
        yield Row("manifest", Verdict.UNKNOWN, text)
    elif manifest.fault:
        remedy = "see `bpfkeeperd check`"
        yield Row("manifest", Verdict.MISSING, manifest.path, manifest.fault, remedy)
    else:
        yield Row("manifest", Verdict.OK, manifest.path)


def _hooks(found: Findings) -> Row:
    wanted = found.manifest.needs.hooks
    lost = [name for name in wanted if _fails(found.hooks.get(name))]
    there = [name for name, hook in found.hooks.items() if hook.can]
    text = f"{len(there)} of {len(found.hooks)} kinds"
    if lost:
        reasons = "; ".join(
            f"{wanted[name]} is not attached at {name}: {found.hooks[name].reason}" for name in lost
        )
        return Row("hooks", Verdict.MISSING, text, reasons)
    if any(hook.refused for hook in found.hooks.values()):
        refused = [name for name, hook in found.hooks.items() if hook.refused]
        why = found.hooks[refused[0]].reason
        return Row("hooks", Verdict.UNKNOWN, f"{text}; {len(refused)} not told: {why}")
    lacked = [name for name, hook in found.hooks.items() if hook.can is False]
    stood_in = [name for name in lacked if _is_stood_in(found, name)]
    missing = [name for name in lacked if name not in stood_in]
    if stood_in:
        text += f"; filters of tc stand for {', '.join(stood_in)}"
    unsure = sum(hook.can is None for hook in found.hooks.values())
    if unsure:
        text += f"; of {unsure} only attaching tells"
    if not missing:
        return Row("hooks", Verdict.OK, text)
    without = f"no programs at {', '.join(missing)}"
    remedy = "`bpfkeeperd check` tells why of those that a manifest needs"
    return Row("hooks", Verdict.LIMITED, text, without, remedy)


def _is_stood_in(found: Findings, name: str) -> bool:
    """Whether filters of tc take the place of a hook of TCX."""
    other = found.hooks.get(name.replace("tcx/", "clsact/"))
    return other is not None and not _fails(other)


def _fails(hook: HookFinding | None) -> bool:
    return hook is not None and (hook.can is False or hook.refused)


def _map_types(found: Findings) -> Row:
    wanted = found.manifest.needs.map_types
    there = [name for name, has in found.map_types.items() if has]
    text = f"{len(there)} of {len(found.map_types)}"
    if not found.map_types:
        return Row("map types", Verdict.UNKNOWN, "not asked: it takes CAP_BPF and CAP_NET_ADMIN")
    missing = [name for name, has in found.map_types.items() if has is False]
    lost = [f"{wanted[name]} ({name})" for name in missing if name in wanted]
    if lost:
        return Row("map types", Verdict.MISSING, text, f"no {', '.join(lost)}", _OTHER_KERNEL)
    unsure = [name for name, has in found.map_types.items() if has is None]
    if unsure:
        text += f"; not told: {', '.join(unsure)}"
    if missing:
        return Row("map types", Verdict.LIMITED, text, f"no maps of type {', '.join(missing)}")
    return Row("map types", Verdict.OK, text)


_OTHER_KERNEL = "use another type, or another kernel: see `bpfkeeperd explain map-type`"


def _counting(found: Findings) -> Row:
    if found.counting:
        return Row("counting", Verdict.OK, found.counting)
    without = "maps are counted from time to time, some types not at all; metrics.observe is none"
    verdict = Verdict.LIMITED
    if found.capabilities is not None and list(lacking(found.capabilities)):
        verdict = Verdict.UNKNOWN if not _has(found, "CAP_BPF") else Verdict.LIMITED
    return Row("counting", verdict, "not in a scrape", without, found.counting_fault)


def _btf(found: Findings) -> Row:
    name, path = "kernel BTF", "/sys/kernel/btf/vmlinux"
    if not found.btf_fault:
        return Row(name, Verdict.OK, path)
    without = (
        "programs with CO-RE, at functions and iterators are not loaded; maps are counted from"
        " time to time"
    )
    remedy = "a kernel with CONFIG_DEBUG_INFO_BTF"
    return Row(name, Verdict.LIMITED, f"{path}: {found.btf_fault}", without, remedy)


def _lockdown(found: Findings) -> Row:
    match found.lockdown:
        case None:
            return Row("lockdown", Verdict.UNKNOWN, "securityfs is not mounted")
        case "confidentiality":
            without = "programs that read the kernel's memory are refused"
            remedy = "boot without lockdown=confidentiality if you need them"
            return Row("lockdown", Verdict.LIMITED, found.lockdown, without, remedy)
        case "integrity":
            without = "programs that write to memory of processes are refused"
            return Row("lockdown", Verdict.LIMITED, found.lockdown, without)
        case _:
            return Row("lockdown", Verdict.OK, found.lockdown)


def _has(found: Findings, name: str) -> bool:
    mask = found.capabilities or 0
    return any(is_held(mask, one) for one in CAPABILITIES if one.name == name)


def _capability(found: Findings, one: Capability) -> Row:
    if found.capabilities is None:
        return Row(one.name, Verdict.UNKNOWN, "/proc is not mounted")
    if one.name == "CAP_SYSLOG":
        return _syslog(found, one)
    if is_held(found.capabilities, one):
        return _honoured(found, one)
    wanted = _wanted_with(found.manifest.needs, one.name)
    if one.essential or wanted:
        remedy = "run it as root, or give it this capability"
        return Row(one.name, Verdict.MISSING, "not held", wanted or one.without, remedy)
    return Row(one.name, Verdict.LIMITED, "not held", one.without)


def _honoured(found: Findings, one: Capability) -> Row:
    """In a user namespace all capabilities can be held, and the kernel heeds few of them."""
    refused = {"CAP_BPF": found.may_make_maps is False, "CAP_SYS_ADMIN": not found.may_open_by_id}
    if refused.get(one.name):
        verdict = Verdict.MISSING if one.essential else Verdict.LIMITED
        remedy = "run it outside of the container, or without its user namespace"
        return Row(one.name, verdict, "held, but the kernel does not heed it", one.without, remedy)
    return Row(one.name, Verdict.OK, "held")


def _syslog(found: Findings, one: Capability) -> Row:
    """Without it the kernel may show its addresses all the same, and with it not."""
    held = "held" if is_held(found.capabilities or 0, one) else "not held"
    level = found.settings.get("kernel.kptr_restrict") or "not told"
    text = f"{held}, kernel.kptr_restrict is {level}: addresses are"
    if found.kernel_addresses:
        return Row(one.name, Verdict.OK, f"{text} shown")
    return Row(one.name, Verdict.LIMITED, f"{text} hidden", one.without)


def _wanted_with(needs: Needs, name: str) -> str:
    """What of a manifest is lost without a capability that is not essential to all."""
    if name != "CAP_SYS_ADMIN":
        return ""
    lost = []
    if needs.other_netns:
        lost.append(f"{needs.other_netns} is in another network namespace")
    if needs.uprobes:
        lost.append(f"{needs.uprobes} is a uprobe, which uprobe.multi is not")
    if needs.take_over:
        lost.append(f"{needs.take_over} cannot take over")
    return "; ".join(lost)


def _perf_events(found: Findings) -> Row:
    name, level = "perf events", found.settings.get("kernel.perf_event_paranoid")
    text = f"kernel.perf_event_paranoid is {level or 'not told'}"
    remedy = "give it CAP_PERFMON; at level 3, which Debian's kernels have, CAP_SYS_ADMIN"
    wanted = found.manifest.needs.perf_events
    if found.perf_events is False and wanted:
        return Row(name, Verdict.MISSING, text, f"{wanted} is not attached", remedy)
    if found.perf_events is False:
        without = "programs at tracepoints, kprobes, uprobes and perf events are not attached"
        return Row(name, Verdict.LIMITED, text, without, remedy)
    if found.uprobes is False:
        without = "uprobes are not attached, uprobe.multi is"
        return Row(name, Verdict.LIMITED, text, without, "give it CAP_SYS_ADMIN")
    return Row(name, Verdict.OK, text)


def _settings(found: Findings) -> Iterator[Row]:
    name = "kernel.unprivileged_bpf_disabled"
    value = found.settings.get(name)
    if value == "0":
        yield Row("unprivileged bpf", Verdict.OK, f"{name} is 0: anybody may load some programs")
    elif value:
        yield Row("unprivileged bpf", Verdict.OK, f"{name} is {value}")
    jit = found.settings.get("net.core.bpf_jit_enable")
    if jit == "0":
        without = "programs are interpreted, slowly; some are refused"
        remedy = "sysctl net.core.bpf_jit_enable=1"
        yield Row("JIT", Verdict.LIMITED, "net.core.bpf_jit_enable is 0", without, remedy)
    elif jit:
        yield Row("JIT", Verdict.OK, f"net.core.bpf_jit_enable is {jit}")
    else:
        where = "root reads it, in the machine's own network namespace"
        yield Row("JIT", Verdict.UNKNOWN, f"net.core.bpf_jit_enable is not seen: {where}")


def _memory(found: Findings) -> Row:
    name = "memory"
    if found.memory_to_cgroups:
        return Row(name, Verdict.OK, "accounted to cgroups, without RLIMIT_MEMLOCK")
    limit = "none" if found.memlock_bytes < 0 else f"{found.memlock_bytes} bytes"
    text = f"RLIMIT_MEMLOCK is {limit}"
    if found.memory_to_cgroups is None:
        return Row(name, Verdict.UNKNOWN, f"{text}; it matters before Linux 5.11")
    if found.memlock_bytes < 0:
        return Row(name, Verdict.OK, text)
    remedy = "LimitMEMLOCK=infinity, or CAP_SYS_RESOURCE: libbpf lifts it then"
    return Row(name, Verdict.LIMITED, text, "maps and programs above it are refused", remedy)


def _descriptors(found: Findings) -> Row:
    name, most, wanted = "descriptors", found.descriptors_max, found.manifest.needs.descriptors
    text, remedy = f"RLIMIT_NOFILE is {most}", "LimitNOFILE=524288"
    if most < wanted:
        without = f"the manifest has the daemon hold some {wanted}"
        return Row(name, Verdict.MISSING, text, without, remedy)
    if most < FEW_DESCRIPTORS:
        without = "one is held for each kept map, program and link"
        return Row(name, Verdict.LIMITED, text, without, remedy)
    return Row(name, Verdict.OK, text)


def _pin_root(found: Findings) -> Row:
    place = found.pin_root
    if place.fault:
        without = "nothing can be pinned"
        return Row("pin root", Verdict.MISSING, place.path, without, place.fault)
    text = f"{place.path}: {place.about}"
    if place.warning:
        return Row("pin root", Verdict.LIMITED, text, place.warning)
    return Row("pin root", Verdict.OK, text)


def _cgroup2(found: Findings) -> Row:
    if found.cgroup2:
        return Row("cgroup2", Verdict.OK, found.cgroup2)
    remedy = "mount -t cgroup2 none /sys/fs/cgroup"
    wanted = found.manifest.needs.cgroups
    if wanted:
        return Row("cgroup2", Verdict.MISSING, "not mounted", f"{wanted} is at a cgroup", remedy)
    without = "programs at cgroups are not attached"
    return Row("cgroup2", Verdict.LIMITED, "not mounted", without, remedy)


def _tracefs(found: Findings) -> Row:
    if found.tracefs:
        return Row("tracefs", Verdict.OK, found.tracefs)
    wanted = found.manifest.needs.hooks.get("tracepoint")
    without = "programs at tracepoints (tp/…) are not attached; raw_tp and tp_btf are"
    remedy = "mount -t tracefs none /sys/kernel/tracing"
    if wanted:
        text = f"{wanted} is at a tracepoint"
        return Row("tracefs", Verdict.MISSING, "not mounted, or not for this user", text, remedy)
    return Row("tracefs", Verdict.LIMITED, "not mounted, or not for this user", without, remedy)


def _libbpf(found: Findings) -> Row:
    numbers = tuple(int(part) for part in found.libbpf.split(".")[:2] if part.isdecimal())
    if numbers < LEAST_LIBBPF:
        remedy = f"{'.'.join(map(str, LEAST_LIBBPF))} or newer"
        return Row("libbpf", Verdict.MISSING, found.libbpf, "nothing is loaded", remedy)
    return Row("libbpf", Verdict.OK, f"{found.libbpf}; nothing of a newer one is needed")


def _python(found: Findings) -> Row:
    text, least = (".".join(map(str, version)) for version in (found.python, LEAST_PYTHON))
    if found.python < LEAST_PYTHON:
        return Row("Python", Verdict.MISSING, text, "it is not made for that", f"{least} or newer")
    return Row("Python", Verdict.OK, text)


def _directories(found: Findings) -> Iterator[Row]:
    place = found.state_directory
    if place.fault:
        without = "ID changes are counted twice or not at all, and nobody knows who made a pin"
        yield Row("state directory", Verdict.LIMITED, place.path, without, place.fault)
    else:
        yield Row("state directory", Verdict.OK, f"{place.path}: {place.about}")
    place = found.run_directory
    if place.fault:
        without = "the daemon does not start: nobody could ask it to reload"
        yield Row("run directory", Verdict.MISSING, place.path, without, place.fault)
    else:
        yield Row("run directory", Verdict.OK, f"{place.path}: {place.about}")


def _daemon(daemon: DaemonFinding | None, *, systemd: bool) -> Row:
    manager = "systemd runs this machine" if systemd else "systemd does not run this machine"
    if daemon is None:
        return Row("daemon", Verdict.OK, f"none runs here; {manager}")
    parts = ["one keeps the pin root" if daemon.pid is None else f"process {daemon.pid}"]
    if daemon.unit:
        parts.append(f"in {daemon.unit}")
    if daemon.notifies:
        parts.append("notifies systemd")
        watchdog = daemon.watchdog_seconds
        parts.append(f"watchdog {watchdog:g} s" if watchdog else "no watchdog")
        # Systemd tells of it since 254, if there is one.
        stores = f"descriptor store for {daemon.stores}"
        parts.append(stores if daemon.stores else "descriptor store not told (systemd 254 does)")
    elif daemon.notifies is False:
        parts.append("not started by systemd")
    text = ", ".join(parts)
    if daemon.capabilities is None:
        return Row("daemon", Verdict.OK, text)
    missing = [one.name for one in lacking(daemon.capabilities)]
    text += f"; holds {held_text(daemon.capabilities)}"
    if missing:
        without = f"it runs without {', '.join(missing)}: see there"
        return Row("daemon", Verdict.LIMITED, text, without)
    return Row("daemon", Verdict.OK, text)
