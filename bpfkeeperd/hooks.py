"""One table of hooks: what a section name says about a program, and where it can be attached.

Numbers are the kernel's ``enum bpf_prog_type`` and ``enum bpf_attach_type`` (include/uapi/linux/
bpf.h); those newer than the headers this is built with are kept here, not taken from them.
"""

from dataclasses import dataclass
from enum import StrEnum

PROG_TYPE_UNSPEC = 0
PROG_TYPE_SCHED_CLS = 3
PROG_TYPE_XDP = 6
PROG_TYPE_CGROUP_SKB = 8
PROG_TYPE_CGROUP_SOCK = 9
PROG_TYPE_SOCK_OPS = 13
PROG_TYPE_CGROUP_DEVICE = 15
PROG_TYPE_CGROUP_SOCK_ADDR = 18
PROG_TYPE_CGROUP_SYSCTL = 23
PROG_TYPE_CGROUP_SOCKOPT = 25


class HookKind(StrEnum):
    """Hooks that are attached and swapped the same way."""

    CGROUP = "cgroup"
    XDP = "xdp"
    TCX = "tcx"


@dataclass(frozen=True, slots=True)
class Hook:
    name: str
    """The section name, canonical: ``cgroup/connect4``, ``xdp``, ``tcx/ingress``."""
    kind: HookKind
    prog_type: int
    attach_type: int
    expected_attach_type: int
    """What the program is loaded with; 0 where the kernel does not look at it."""


def _cgroup(name: str, prog_type: int, attach_type: int) -> Hook:
    return Hook(name, HookKind.CGROUP, prog_type, attach_type, attach_type)


XDP = Hook("xdp", HookKind.XDP, PROG_TYPE_XDP, 37, 37)
TCX_INGRESS = Hook("tcx/ingress", HookKind.TCX, PROG_TYPE_SCHED_CLS, 46, 0)
TCX_EGRESS = Hook("tcx/egress", HookKind.TCX, PROG_TYPE_SCHED_CLS, 47, 0)

HOOKS = (
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
    XDP,
    TCX_INGRESS,
    TCX_EGRESS,
)

_BY_SECTION = {hook.name: hook for hook in HOOKS} | {
    "cgroup/sock": next(hook for hook in HOOKS if hook.name == "cgroup/sock_create"),
    "xdp.frags": XDP,
    "tc/ingress": TCX_INGRESS,
    "tc/egress": TCX_EGRESS,
}


def hook_of_section(section: str) -> Hook | None:
    """The hook that a section name stands for; None for one that cannot be attached here.

    A leading ``?`` (libbpf: do not load unless asked) does not change the hook. Sections such as
    ``xdp/name`` are an old spelling of ``xdp``; ``xdp/devmap`` and ``xdp/cpumap`` are not, their
    programs are run from a map.
    """
    section = section.removeprefix("?")
    hook = _BY_SECTION.get(section)
    if hook is None and section.startswith(("xdp/", "xdp.frags/")):
        rest = section.split("/", 1)[1]
        if rest not in ("devmap", "cpumap"):
            return XDP
    return hook


LINK_TYPES = {HookKind.CGROUP: 3, HookKind.XDP: 6, HookKind.TCX: 11}
"""``enum bpf_link_type`` of the links that attach each kind."""
