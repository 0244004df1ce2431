"""Targets as a manifest writes them. Pure."""

from collections.abc import Callable, Mapping

from bpfkeeperd.decode import Record
from bpfkeeperd.targets import (
    BinaryTarget,
    CgroupTarget,
    FunctionTarget,
    InterfaceTarget,
    MapTarget,
    NetfilterTarget,
    NetnsTarget,
    PerfEventTarget,
    Target,
    TracepointTarget,
    XdpMode,
)


def _interface(record: Record) -> Target | str:
    priority = record.number("priority")
    if priority is not None and not 1 <= priority <= 65535:
        return f"the priority of a filter at an interface is from 1 to 65535, not {priority}"
    mode = XdpMode(record.text("mode") or XdpMode.AUTO)
    return InterfaceTarget(record.text("interface") or "", record.text("netns"), mode, priority)


def _binary(record: Record) -> Target | str:
    symbol, offset = record.text("symbol") or "", record.number("offset")
    if not symbol and offset is None:
        return "a binary alone is no place: write symbol: NAME, or offset: BYTES, beside it"
    return BinaryTarget(record.text("binary") or "", symbol, offset or 0, record.number("pid"))


def _perf_event(record: Record) -> Target | str:
    frequency, period = record.number("frequency"), record.number("period")
    if (frequency is None) == (period is None):
        return "a perf event needs either frequency: TIMES_A_SECOND or period: EVENTS"
    return PerfEventTarget(
        record.text("perf_event") or "",
        frequency or 0,
        period or 0,
        record.number("cpu"),
        record.number("pid"),
    )


def _netfilter(record: Record) -> Target | str:
    priority, defrag = record.number("priority"), bool(record.number("defrag"))
    if priority is None:
        return "a netfilter hook needs a priority: -100 is before most, 100 after"
    if not NF_PRIORITY_MIN <= priority <= NF_PRIORITY_MAX:
        return (
            f"the kernel takes priorities from {NF_PRIORITY_MIN} to {NF_PRIORITY_MAX + 1} here, and"
            f" a swap needs the next one as well: {priority} cannot be"
        )
    if defrag and priority <= NF_DEFRAG_PRIORITY:
        return (
            f"packets are put together at priority {NF_DEFRAG_PRIORITY}, and a program with defrag"
            f" is behind that: write {NF_DEFRAG_PRIORITY + 1} or more, or leave out defrag"
        )
    family, _, hook = (record.text("netfilter") or "").partition("/")
    return NetfilterTarget(family, hook, priority, record.text("netns"), defrag)


NF_PRIORITY_MIN, NF_PRIORITY_MAX = -(2**31) + 1, 2**31 - 3
"""The kernel refuses the least and the greatest number."""
NF_DEFRAG_PRIORITY = -400
"""NF_IP_PRI_CONNTRACK_DEFRAG, NF_IP6_PRI_CONNTRACK_DEFRAG."""

TARGET_MAKERS: Mapping[str, Callable[[Record], Target | str]] = {
    "cgroup": lambda record: CgroupTarget(record.text("cgroup") or ""),
    "interface": _interface,
    "map": lambda record: MapTarget(record.text("map") or ""),
    "function": lambda record: FunctionTarget(
        record.text("function") or "", record.number("offset") or 0
    ),
    "tracepoint": lambda record: TracepointTarget(record.text("tracepoint") or ""),
    "binary": _binary,
    "perf_event": _perf_event,
    "netfilter": _netfilter,
    "netns": lambda record: NetnsTarget(record.text("netns") or ""),
}
"""By the field that says where: the target, or what is wrong with it."""
