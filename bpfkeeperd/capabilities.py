"""One table of Linux capabilities: what each is for here, and what does not work without it. Pure.

`doctor`, the daemon's journal and the table in README.md read it.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capability:
    name: str
    number: int
    """Of include/uapi/linux/capability.h."""
    needed_by: str
    without: str
    """What does not work without it; empty: nothing that can be told beforehand."""
    essential: bool = False
    """Nothing works without it."""
    special: bool = False
    """For special cases, which the unit of the service leaves to drop-ins."""


CAPABILITIES = (
    Capability(
        "CAP_BPF",
        39,
        "maps, programs and links of every kind",
        "nothing can be loaded",
        essential=True,
    ),
    Capability(
        "CAP_NET_ADMIN",
        12,
        "programs at cgroups, interfaces, network namespaces, netfilter and sockets",
        "programs of these kinds are not loaded",
    ),
    Capability(
        "CAP_PERFMON",
        38,
        "programs at functions, tracepoints and perf events, iterators, struct_ops; counting"
        " entries in a scrape",
        "programs of these kinds are not loaded, of other kinds the verifier refuses some; maps"
        " are counted from time to time, the inner maps that a map of maps takes are not known",
    ),
    Capability(
        "CAP_SYS_ADMIN",
        21,
        "other network namespaces (`netns` of interfaces and netfilter), uprobes (not"
        " `uprobe.multi`), `program_statistics`; everything of others that is found by its ID:"
        " what they attached (`take_over`, `before`, `after`, drift), inner maps, BTF of maps that"
        " are pinned",
        "interfaces and netfilter in other network namespaces and plain uprobes are not"
        " attached; runs of programs are not counted; what others attached is not seen, nor taken"
        " over, nor gone before or after by name; a struct that changes and keeps its size, inner"
        " maps and members in dump are not seen; global data of another layout is held back",
    ),
    Capability(
        "CAP_SYSLOG",
        34,
        "the exact number of map IDs given out",
        "kernel_map_ids_exact is 0, the highest ID seen stands for the number",
        special=True,
    ),
    Capability(
        "CAP_DAC_OVERRIDE",
        1,
        "files, directories and pins that the user of the daemon may not open or write",
        "files, cgroups and pins of others can be used as far as their mode allows",
        special=True,
    ),
    Capability(
        "CAP_CHOWN",
        0,
        "owner and group of a pin, given or kept when its map is made anew",
        "a pin cannot be given to others, nor a map be made anew whose pin was given to others",
        special=True,
    ),
    Capability(
        "CAP_FOWNER",
        3,
        "mode of a pin that belongs to somebody else",
        "the mode of a pin of somebody else cannot be changed",
        special=True,
    ),
    Capability(
        "CAP_SYS_PTRACE",
        19,
        "network namespaces and binaries that are given as a path below `/proc/PID`",
        "such paths of processes of others cannot be followed",
        special=True,
    ),
)
"""In the order in which they are shown."""


def is_held(mask: int, capability: Capability) -> bool:
    """Whether a set of capabilities, as /proc has it, holds one."""
    return bool(mask >> capability.number & 1)


def lacking(mask: int) -> Iterator[Capability]:
    """Those of the table that a set does not hold."""
    return (capability for capability in CAPABILITIES if not is_held(mask, capability))


def lacking_daily(mask: int) -> list[Capability]:
    """Those of them that more than special cases want."""
    return [one for one in lacking(mask) if not one.special]


def lacking_text(mask: int) -> str:
    """What of every day's is not possible with a set of capabilities, in one line; empty: nothing
    of that is missing."""
    missing = lacking_daily(mask)
    if not missing:
        return ""
    effects = "; ".join(f"{one.name} ({one.without})" for one in missing)
    return f"some things do not work, for want of {effects}"


def held_text(mask: int) -> str:
    """The capabilities of a set that are in the table."""
    return ", ".join(one.name for one in CAPABILITIES if is_held(mask, one)) or "none of these"


def effective_of(status: str) -> int | None:
    """The effective set in the text of /proc/PID/status; None when it is not told."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return None


def reference_table() -> str:
    """The table in README.md."""
    rows = [
        f"| `{one.name}` | {one.needed_by} | {one.without}{' at all' if one.essential else ''} |"
        for one in CAPABILITIES
    ]
    return "\n".join(["| capability | is for | without it |", "|---|---|---|", *rows])
