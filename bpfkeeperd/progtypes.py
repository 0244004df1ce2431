"""One table of program types: what a manifest calls them, and their numbers. Pure.

Numbers are the kernel's ``enum bpf_prog_type`` (include/uapi/linux/bpf.h), in its order.
"""

from dataclasses import dataclass

from bpfkeeperd.hooks import HOOKS, PLACED_HOOKS

PROGRAM_TYPES = {
    name: number
    for number, name in enumerate(
        (
            *("socket_filter", "kprobe", "sched_cls", "sched_act", "tracepoint", "xdp"),
            *("perf_event", "cgroup_skb", "cgroup_sock", "lwt_in", "lwt_out", "lwt_xmit"),
            *("sock_ops", "sk_skb", "cgroup_device", "sk_msg", "raw_tracepoint"),
            *("cgroup_sock_addr", "lwt_seg6local", "lirc_mode2", "sk_reuseport"),
            *("flow_dissector", "cgroup_sysctl", "raw_tracepoint_writable", "cgroup_sockopt"),
            *("tracing", "struct_ops", "ext", "lsm", "sk_lookup", "syscall", "netfilter"),
        ),
        start=1,
    )
}
"""By name, as bpftool spells it."""


@dataclass(frozen=True, slots=True)
class ProgramKind:
    """What a program is loaded as."""

    type: int
    expected_attach_type: int
    """0 where the kernel does not look at it, or where the type alone is known."""
    sleepable: bool = False
    """It may wait, as for memory that was swapped out (BPF_F_SLEEPABLE)."""


PROGRAM_KINDS = {name: ProgramKind(number, 0) for name, number in PROGRAM_TYPES.items()} | {
    hook.name: ProgramKind(hook.prog_type, hook.expected_attach_type, hook.sleepable)
    for hook in (*HOOKS, *PLACED_HOOKS)
}
"""By name of a program type, or of a hook, which says more."""
