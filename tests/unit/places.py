"""Hooks of the programs in random situations, and where each is attached."""

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import strategies as st

from bpfkeeperd.desired import Attachment
from bpfkeeperd.hooks import Hook, HookKind, SwapWay, hook_of_section
from bpfkeeperd.targets import (
    CLSACT_PRIORITY,
    CgroupTarget,
    InterfaceTarget,
    MapTarget,
    Target,
    TracepointTarget,
    XdpMode,
)

CGROUPS: tuple[Target, ...] = (CgroupTarget("web.slice"), CgroupTarget("db.slice"))
PATTERN: Target = CgroupTarget("*.slice")
ETH0 = InterfaceTarget("eth0")
INTERFACES: tuple[Target, ...] = (ETH0, replace(ETH0, mode=XdpMode.GENERIC))
TRACEPOINTS: tuple[Target, ...] = (
    TracepointTarget("sched/sched_switch"),
    TracepointTarget("sched/sched_waking"),
)
SOCKETS = MapTarget("sockets")
TARGETS: Mapping[Target, int] = {
    **dict(zip(CGROUPS, (10, 11), strict=True)),
    **dict.fromkeys((*INTERFACES, replace(ETH0, priority=CLSACT_PRIORITY)), 20),
    **dict.fromkeys(TRACEPOINTS, 1),
}
"""With their numbers. The kernel numbers no tracepoints."""

SECTIONS = (
    "cgroup_skb/egress",
    "sockops",
    "xdp",
    "tracepoint",
    "clsact/egress",
    "tcx/ingress",
    "sk_skb/verdict",
)


def hook(section: str) -> Hook:
    found = hook_of_section(section)
    assert found
    return found


def targets_of(section: str) -> tuple[Target, ...]:
    match hook(section).kind:
        case HookKind.CGROUP:
            return (*CGROUPS, PATTERN)
        case HookKind.XDP:
            return INTERFACES
        case HookKind.TRACEPOINT:
            return TRACEPOINTS
        case HookKind.SOCKMAP:
            return (SOCKETS,)
        case _:
            return (ETH0,)


def order(draw: st.DrawFn, section: str) -> tuple[str, str]:
    """Before and after whom a program is to run."""
    if hook(section).kind is not HookKind.TCX:
        return "", ""
    return draw(st.sampled_from([("", ""), ("*", ""), ("", "*"), ("", "nobody")]))


def can_be_exact(one: Attachment) -> bool:
    return one.hook.rules.swap in (SwapWay.OVERLAP, SwapWay.STUB)
