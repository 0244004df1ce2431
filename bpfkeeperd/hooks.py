"""One table of hooks: what a section name says about a program, and how it can be attached.

Numbers are the kernel's ``enum bpf_prog_type``, ``enum bpf_attach_type`` and ``enum bpf_link_type``
(include/uapi/linux/bpf.h); those newer than the headers this is built with are kept here, not taken
from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from bpfkeeperd.targets import (
    BinaryTarget,
    CgroupTarget,
    FunctionTarget,
    InterfaceTarget,
    IteratorTarget,
    MapTarget,
    NetfilterTarget,
    NetnsTarget,
    PerfEventTarget,
    Target,
    TracepointTarget,
)

PROG_TYPE_UNSPEC = 0
PROG_TYPE_KPROBE = 2
PROG_TYPE_SCHED_CLS = 3
PROG_TYPE_TRACEPOINT = 5
PROG_TYPE_XDP = 6
PROG_TYPE_PERF_EVENT = 7
PROG_TYPE_CGROUP_SKB = 8
PROG_TYPE_CGROUP_SOCK = 9
PROG_TYPE_SOCK_OPS = 13
PROG_TYPE_SK_SKB = 14
PROG_TYPE_CGROUP_DEVICE = 15
PROG_TYPE_SK_MSG = 16
PROG_TYPE_RAW_TRACEPOINT = 17
PROG_TYPE_CGROUP_SOCK_ADDR = 18
PROG_TYPE_FLOW_DISSECTOR = 22
PROG_TYPE_CGROUP_SYSCTL = 23
PROG_TYPE_RAW_TRACEPOINT_WRITABLE = 24
PROG_TYPE_CGROUP_SOCKOPT = 25
PROG_TYPE_TRACING = 26
PROG_TYPE_LSM = 29
PROG_TYPE_SK_LOOKUP = 30
PROG_TYPE_NETFILTER = 32


class HookKind(StrEnum):
    """Hooks that are attached and swapped the same way."""

    CGROUP = "cgroup"
    XDP = "xdp"
    TCX = "tcx"
    CLSACT = "clsact"
    NETKIT = "netkit"
    NETNS = "netns"
    NETFILTER = "netfilter"
    SOCKMAP = "sockmap"
    TRACING = "tracing"
    """fentry, fexit, fmod_ret, LSM: a function that is fixed when the program is loaded."""
    RAW_TRACEPOINT = "raw_tracepoint"
    TRACEPOINT = "tracepoint"
    KPROBE = "kprobe"
    KPROBE_MULTI = "kprobe_multi"
    UPROBE = "uprobe"
    UPROBE_MULTI = "uprobe_multi"
    PERF_EVENT = "perf_event"
    ITERATOR = "iterator"
    STRUCT_OPS = "struct_ops"


class SwapWay(StrEnum):
    """How the program of an attachment is exchanged for another."""

    UPDATE = "update"
    """BPF_LINK_UPDATE with the expected old program: no event is missed, none is seen twice."""
    REPLACE = "replace"
    """The filter with its handle and priority is replaced: likewise."""
    OVERLAP = "overlap"
    """The new one is attached, then the old one is let go: none is missed, those of a moment are
    seen by both."""
    STUB = "stub"
    """A stub that stays attached calls a slot of a program array, which is written: as `UPDATE`."""


@dataclass(frozen=True, slots=True)
class KindRules:
    """What goes for all hooks of a kind."""

    link_types: frozenset[int]
    """``enum bpf_link_type``: what the kernel calls their attachments."""
    swap: SwapWay
    targets: tuple[type[Target], ...]
    write: str
    """How a target is written."""
    since: str
    """The kernel that first had it."""
    exclusive: bool = False
    """A target takes one program at a time."""
    typed: bool = True
    """The kernel tells the attach type of a link."""
    opaque: bool = False
    """Not every kernel tells where an attachment is: it is known by its pin then."""

    @property
    def noun(self) -> str:
        return NOUNS[self.write.partition(":")[0]]


NOUNS = {
    "cgroup": "a cgroup",
    "interface": "an interface",
    "netns": "a network namespace",
    "netfilter": "a netfilter hook",
    "map": "a map",
    "function": "a function",
    "tracepoint": "a tracepoint",
    "binary": "a binary",
    "perf_event": "a perf event",
}
"""Targets, by the field of the manifest that names them."""

CLSACT_LINK = 1 << 16
SOCKMAP_ATTACHED = (1 << 16) + 1
"""No link types: attachments without a link (see `layout.Layout.attached`)."""

KINDS: Mapping[HookKind, KindRules] = {
    HookKind.CGROUP: KindRules(
        frozenset({3}), SwapWay.UPDATE, (CgroupTarget,), "cgroup: PATH", "5.7"
    ),
    HookKind.XDP: KindRules(
        frozenset({6}), SwapWay.UPDATE, (InterfaceTarget,), "interface: NAME", "5.9", exclusive=True
    ),
    HookKind.TCX: KindRules(
        frozenset({11, CLSACT_LINK}),  # the latter on a kernel without TCX
        SwapWay.UPDATE,
        (InterfaceTarget,),
        "interface: NAME",
        "6.6",
    ),
    HookKind.CLSACT: KindRules(
        frozenset({CLSACT_LINK}), SwapWay.REPLACE, (InterfaceTarget,), "interface: NAME", "4.5"
    ),
    HookKind.NETKIT: KindRules(
        frozenset({13}), SwapWay.UPDATE, (InterfaceTarget,), "interface: NAME", "6.7"
    ),
    HookKind.NETNS: KindRules(frozenset({5}), SwapWay.UPDATE, (NetnsTarget,), "netns: NAME", "5.8"),
    HookKind.NETFILTER: KindRules(
        frozenset({10}),
        SwapWay.OVERLAP,
        (NetfilterTarget,),
        "netfilter: ipv4/local_in, priority: NUMBER",
        "6.4",
    ),
    HookKind.SOCKMAP: KindRules(
        frozenset({14, SOCKMAP_ATTACHED}),
        SwapWay.STUB,
        (MapTarget,),
        "map: NAME",
        "4.17",
        exclusive=True,
    ),
    HookKind.TRACING: KindRules(
        frozenset({2}), SwapWay.OVERLAP, (FunctionTarget,), "function: NAME", "5.5"
    ),
    HookKind.RAW_TRACEPOINT: KindRules(
        frozenset({1}),
        SwapWay.OVERLAP,
        (TracepointTarget,),
        "tracepoint: NAME",
        "4.17",
        typed=False,
    ),
    HookKind.TRACEPOINT: KindRules(
        frozenset({7}),
        SwapWay.OVERLAP,
        (TracepointTarget,),
        "tracepoint: GROUP/NAME",
        "5.15",
        typed=False,
    ),
    HookKind.KPROBE: KindRules(
        frozenset({7}),
        SwapWay.OVERLAP,
        (FunctionTarget,),
        "function: NAME",
        "5.15",
        typed=False,
    ),
    HookKind.KPROBE_MULTI: KindRules(
        frozenset({8}),
        SwapWay.OVERLAP,
        (FunctionTarget,),
        "function: PATTERN",
        "5.18",
        typed=False,
    ),
    HookKind.UPROBE: KindRules(
        frozenset({7}),
        SwapWay.OVERLAP,
        (BinaryTarget,),
        "binary: PATH, symbol: NAME",
        "5.15",
        typed=False,
        opaque=True,
    ),
    HookKind.UPROBE_MULTI: KindRules(
        frozenset({12}),
        SwapWay.OVERLAP,
        (BinaryTarget,),
        "binary: PATH, symbol: PATTERN",
        "6.6",
        typed=False,
        opaque=True,
    ),
    HookKind.PERF_EVENT: KindRules(
        frozenset({7}),
        SwapWay.OVERLAP,
        (PerfEventTarget,),
        "perf_event: cpu-clock",
        "5.15",
        typed=False,
    ),
    HookKind.ITERATOR: KindRules(
        frozenset({4}),
        SwapWay.UPDATE,
        (IteratorTarget, MapTarget),
        "map: NAME",
        "5.8",
        typed=False,
    ),
    HookKind.STRUCT_OPS: KindRules(
        frozenset({9}), SwapWay.UPDATE, (MapTarget,), "map: NAME", "6.4"
    ),
}
"""The one table of how attachments are made and swapped."""

_LASTING = (HookKind.CGROUP, HookKind.XDP, HookKind.TCX, HookKind.NETKIT, HookKind.NETNS)
STORED_LINKS = frozenset().union(*(KINDS[kind].link_types for kind in _LASTING))
"""Types of links of which the service manager keeps a descriptor: the kernel detaches them when it
is told to (BPF_LINK_DETACH), whoever holds them, so that none is kept that is to go; and each runs
its program itself, not through a stub, whose array would need a descriptor, too."""


@dataclass(frozen=True, slots=True)
class Hook:
    name: str
    """The section name, canonical, without the place that may follow: ``cgroup/connect4``,
    ``tcx/ingress``, ``fentry``, ``kretprobe``."""
    kind: HookKind
    prog_type: int
    attach_type: int
    expected_attach_type: int
    """What the program is loaded with; 0 where the kernel does not look at it."""
    sleepable: bool = False

    @property
    def rules(self) -> KindRules:
        return KINDS[self.kind]


def _cgroup(name: str, prog_type: int, attach_type: int) -> Hook:
    return Hook(name, HookKind.CGROUP, prog_type, attach_type, attach_type)


NETKIT_PEER = 55
"""BPF_NETKIT_PEER: of such a link the kernel tells the index of the peer, in the namespace of that,
and not that of the interface that it was made at."""

XDP = Hook("xdp", HookKind.XDP, PROG_TYPE_XDP, 37, 37)
TCX_INGRESS = Hook("tcx/ingress", HookKind.TCX, PROG_TYPE_SCHED_CLS, 46, 0)
TCX_EGRESS = Hook("tcx/egress", HookKind.TCX, PROG_TYPE_SCHED_CLS, 47, 0)

HOOKS: tuple[Hook, ...] = (
    _cgroup("cgroup_skb/ingress", PROG_TYPE_CGROUP_SKB, 0),
    _cgroup("cgroup_skb/egress", PROG_TYPE_CGROUP_SKB, 1),
    _cgroup("cgroup/sock_create", PROG_TYPE_CGROUP_SOCK, 2),
    _cgroup("sockops", PROG_TYPE_SOCK_OPS, 3),
    _cgroup("cgroup/dev", PROG_TYPE_CGROUP_DEVICE, 6),
    _cgroup("cgroup/bind4", PROG_TYPE_CGROUP_SOCK_ADDR, 8),
    _cgroup("cgroup/bind6", PROG_TYPE_CGROUP_SOCK_ADDR, 9),
    _cgroup("cgroup/connect4", PROG_TYPE_CGROUP_SOCK_ADDR, 10),
    _cgroup("cgroup/connect6", PROG_TYPE_CGROUP_SOCK_ADDR, 11),
    _cgroup("cgroup/post_bind4", PROG_TYPE_CGROUP_SOCK, 12),
    _cgroup("cgroup/post_bind6", PROG_TYPE_CGROUP_SOCK, 13),
    _cgroup("cgroup/sendmsg4", PROG_TYPE_CGROUP_SOCK_ADDR, 14),
    _cgroup("cgroup/sendmsg6", PROG_TYPE_CGROUP_SOCK_ADDR, 15),
    _cgroup("cgroup/sysctl", PROG_TYPE_CGROUP_SYSCTL, 18),
    _cgroup("cgroup/recvmsg4", PROG_TYPE_CGROUP_SOCK_ADDR, 19),
    _cgroup("cgroup/recvmsg6", PROG_TYPE_CGROUP_SOCK_ADDR, 20),
    _cgroup("cgroup/getsockopt", PROG_TYPE_CGROUP_SOCKOPT, 21),
    _cgroup("cgroup/setsockopt", PROG_TYPE_CGROUP_SOCKOPT, 22),
    _cgroup("cgroup/getpeername4", PROG_TYPE_CGROUP_SOCK_ADDR, 29),
    _cgroup("cgroup/getpeername6", PROG_TYPE_CGROUP_SOCK_ADDR, 30),
    _cgroup("cgroup/getsockname4", PROG_TYPE_CGROUP_SOCK_ADDR, 31),
    _cgroup("cgroup/getsockname6", PROG_TYPE_CGROUP_SOCK_ADDR, 32),
    _cgroup("cgroup/sock_release", PROG_TYPE_CGROUP_SOCK, 34),
    _cgroup("cgroup/connect_unix", PROG_TYPE_CGROUP_SOCK_ADDR, 49),
    _cgroup("cgroup/sendmsg_unix", PROG_TYPE_CGROUP_SOCK_ADDR, 50),
    _cgroup("cgroup/recvmsg_unix", PROG_TYPE_CGROUP_SOCK_ADDR, 51),
    _cgroup("cgroup/getpeername_unix", PROG_TYPE_CGROUP_SOCK_ADDR, 52),
    _cgroup("cgroup/getsockname_unix", PROG_TYPE_CGROUP_SOCK_ADDR, 53),
    _cgroup("lsm_cgroup", PROG_TYPE_LSM, 43),
    XDP,
    TCX_INGRESS,
    TCX_EGRESS,
    Hook("clsact/ingress", HookKind.CLSACT, PROG_TYPE_SCHED_CLS, 46, 0),
    Hook("clsact/egress", HookKind.CLSACT, PROG_TYPE_SCHED_CLS, 47, 0),
    Hook("netkit/primary", HookKind.NETKIT, PROG_TYPE_SCHED_CLS, 54, 0),
    Hook("netkit/peer", HookKind.NETKIT, PROG_TYPE_SCHED_CLS, NETKIT_PEER, 0),
    Hook("sk_lookup", HookKind.NETNS, PROG_TYPE_SK_LOOKUP, 36, 36),
    Hook("flow_dissector", HookKind.NETNS, PROG_TYPE_FLOW_DISSECTOR, 17, 0),
    Hook("netfilter", HookKind.NETFILTER, PROG_TYPE_NETFILTER, 45, 45),
    Hook("sk_skb/stream_parser", HookKind.SOCKMAP, PROG_TYPE_SK_SKB, 4, 4),
    Hook("sk_skb/stream_verdict", HookKind.SOCKMAP, PROG_TYPE_SK_SKB, 5, 5),
    Hook("sk_skb/verdict", HookKind.SOCKMAP, PROG_TYPE_SK_SKB, 38, 38),
    Hook("sk_msg", HookKind.SOCKMAP, PROG_TYPE_SK_MSG, 7, 7),
    Hook("perf_event", HookKind.PERF_EVENT, PROG_TYPE_PERF_EVENT, 41, 0),
)
"""Hooks whose section names say nothing of the place."""

_TRACING = (("fentry", 24), ("fexit", 25), ("fmod_ret", 26))

PLACED_HOOKS: tuple[Hook, ...] = (
    Hook("tracepoint", HookKind.TRACEPOINT, PROG_TYPE_TRACEPOINT, 41, 0),
    Hook("raw_tracepoint", HookKind.RAW_TRACEPOINT, PROG_TYPE_RAW_TRACEPOINT, 0, 0),
    Hook("raw_tracepoint.w", HookKind.RAW_TRACEPOINT, PROG_TYPE_RAW_TRACEPOINT_WRITABLE, 0, 0),
    Hook("tp_btf", HookKind.RAW_TRACEPOINT, PROG_TYPE_TRACING, 23, 23),
    *(Hook(name, HookKind.TRACING, PROG_TYPE_TRACING, number, number) for name, number in _TRACING),
    *(
        Hook(f"{name}.s", HookKind.TRACING, PROG_TYPE_TRACING, number, number, sleepable=True)
        for name, number in _TRACING
    ),
    Hook("lsm", HookKind.TRACING, PROG_TYPE_LSM, 27, 27),
    Hook("lsm.s", HookKind.TRACING, PROG_TYPE_LSM, 27, 27, sleepable=True),
    Hook("iter", HookKind.ITERATOR, PROG_TYPE_TRACING, 28, 28),
    Hook("iter.s", HookKind.ITERATOR, PROG_TYPE_TRACING, 28, 28, sleepable=True),
    *(
        Hook(name, HookKind.KPROBE, PROG_TYPE_KPROBE, 41, 0)
        for name in ("kprobe", "kretprobe", "ksyscall", "kretsyscall")
    ),
    Hook("kprobe.multi", HookKind.KPROBE_MULTI, PROG_TYPE_KPROBE, 42, 42),
    Hook("kretprobe.multi", HookKind.KPROBE_MULTI, PROG_TYPE_KPROBE, 42, 42),
    Hook("uprobe", HookKind.UPROBE, PROG_TYPE_KPROBE, 41, 0),
    Hook("uretprobe", HookKind.UPROBE, PROG_TYPE_KPROBE, 41, 0),
    Hook("uprobe.s", HookKind.UPROBE, PROG_TYPE_KPROBE, 41, 0, sleepable=True),
    Hook("uretprobe.s", HookKind.UPROBE, PROG_TYPE_KPROBE, 41, 0, sleepable=True),
    Hook("uprobe.multi", HookKind.UPROBE_MULTI, PROG_TYPE_KPROBE, 48, 48),
    Hook("uretprobe.multi", HookKind.UPROBE_MULTI, PROG_TYPE_KPROBE, 48, 48),
    Hook("uprobe.multi.s", HookKind.UPROBE_MULTI, PROG_TYPE_KPROBE, 48, 48, sleepable=True),
    Hook("uretprobe.multi.s", HookKind.UPROBE_MULTI, PROG_TYPE_KPROBE, 48, 48, sleepable=True),
)
"""Hooks whose section names may go on with a place: ``fentry/tcp_connect``."""

STRUCT_OPS = Hook("struct_ops", HookKind.STRUCT_OPS, 27, 44, 0)
"""Of a map that registers the programs in it, which are not attached one by one."""

_BY_SECTION = {hook.name: hook for hook in (*HOOKS, *PLACED_HOOKS)} | {
    "cgroup/sock": next(hook for hook in HOOKS if hook.name == "cgroup/sock_create"),
    "xdp.frags": XDP,
    "tc/ingress": TCX_INGRESS,
    "tc/egress": TCX_EGRESS,
}
_OTHER_NAMES = {
    "tp": "tracepoint",
    "raw_tp": "raw_tracepoint",
    "raw_tp.w": "raw_tracepoint.w",
}


def hook_of_section(section: str) -> Hook | None:
    """The hook that a section name stands for; None for one that cannot be attached here.

    A leading ``?`` (libbpf: do not load unless asked) does not change the hook. Sections such as
    ``xdp/name`` are an old spelling of ``xdp``; ``xdp/devmap`` and ``xdp/cpumap`` are not, their
    programs are run from a map.
    """
    section = section.removeprefix("?")
    hook = _BY_SECTION.get(section)
    if hook or "/" not in section:
        return hook or _BY_SECTION.get(_OTHER_NAMES.get(section, ""))
    first, rest = section.split("/", 1)
    if first in ("xdp", "xdp.frags"):
        return None if rest in ("devmap", "cpumap") else XDP
    placed = _BY_SECTION.get(_OTHER_NAMES.get(first, first))
    return placed if placed in PLACED_HOOKS or first == "lsm_cgroup" else None


def place_of_section(section: str) -> str:
    """What follows the hook in a section name: the function of ``fentry/tcp_connect``, the path and
    symbol of ``uprobe//usr/bin/bash:readline``; empty for nothing."""
    section = section.removeprefix("?")
    if section in _BY_SECTION or "/" not in section:
        return ""
    return section.split("/", 1)[1]
