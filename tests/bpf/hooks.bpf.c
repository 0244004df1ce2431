// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Programs of many hooks at once, each of which counts for itself and for its version what it sees.
 *
 * A group of hooks is chosen with -D and its name, see below.
 * VERSION	0 to 3: where it counts
 * PID, SYSCALL	whose calls, and of which system call, are counted where everybody's are seen
 * PIDS_DEVICE, PIDS_INODE	the namespace of PID
 * SUFFIX	goes behind the name of each program
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct label {
	char text[32];
};

struct versions {
	__u64 events[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct label);
	__type(value, struct versions);
	__uint(max_entries, 64);
} seen SEC(".maps");

static __always_inline void note(const struct label *label)
{
	struct versions *found, none = {};

	bpf_map_update_elem(&seen, label, &none, BPF_NOEXIST);
	found = bpf_map_lookup_elem(&seen, label);
	if (found)
		__sync_fetch_and_add(&found->events[VERSION], 1);
}

#define NAME__(name, suffix) name##suffix
#define NAME_(name, suffix) NAME__(name, suffix)
#define NAME(name) NAME_(name, SUFFIX)
#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)

/* A program that counts its event if it is one of ours. */
#define HOOK(section, name, context, ours, verdict)		\
SEC(section)							\
int NAME(name)(context *ctx)					\
{								\
	struct label key = { TEXT(NAME(name)) };			\
								\
	if (ours)						\
		note(&key);					\
	return verdict;						\
}

#ifdef PID
static __always_inline __attribute__((unused)) int is_ours(void)
{
	struct bpf_pidns_info found = {};

	return bpf_get_ns_current_pid_tgid(PIDS_DEVICE, PIDS_INODE, &found, sizeof(found)) == 0 &&
	       found.tgid == PID;
}
#endif

#define OUR_PROCESS is_ours()
#define OUR_CALL (OUR_PROCESS && ctx[1] == SYSCALL)
#define CGROUP(name) HOOK("cgroup/" #name, name, void, 1, 1)

#if defined(CGROUPS)
HOOK("cgroup_skb/ingress", skb_ingress, void, 1, 1)
HOOK("cgroup_skb/egress", skb_egress, void, 1, 1)
HOOK("sockops", operations, void, 1, 1)
HOOK("cgroup/dev", dev, void, 1, 1)
CGROUP(sock_create)
CGROUP(sock_release)
CGROUP(bind4)
CGROUP(bind6)
CGROUP(post_bind4)
CGROUP(post_bind6)
CGROUP(connect4)
CGROUP(connect6)
CGROUP(sendmsg4)
CGROUP(sendmsg6)
CGROUP(recvmsg4)
CGROUP(recvmsg6)
CGROUP(getpeername4)
CGROUP(getpeername6)
CGROUP(getsockname4)
CGROUP(getsockname6)
CGROUP(sysctl)
CGROUP(getsockopt)
CGROUP(setsockopt)
#elif defined(UNIX)
CGROUP(connect_unix)
CGROUP(sendmsg_unix)
CGROUP(recvmsg_unix)
CGROUP(getpeername_unix)
CGROUP(getsockname_unix)
#elif defined(INTERFACES)
HOOK("xdp", native, void, 1, XDP_PASS)
HOOK("xdp", generic, void, 1, XDP_PASS)
HOOK("tcx/ingress", tcx_ingress, void, 1, -1)
HOOK("tcx/egress", tcx_egress, void, 1, -1)
HOOK("tc", clsact_ingress, void, 1, -1)
HOOK("tc", clsact_egress, void, 1, -1)
HOOK("sk_lookup", lookup, void, 1, 1)
HOOK("flow_dissector", dissector, void, 1, 0)
#elif defined(NETFILTER)
HOOK("netfilter", filter, void, 1, 1)
#elif defined(NETKIT)
HOOK("tc", primary, void, 1, -1)
HOOK("tc", peer, void, 1, -1)
#elif defined(SOCKETS)
#define SOCKET_MAP(name)			\
struct {					\
	__uint(type, BPF_MAP_TYPE_SOCKMAP);	\
	__type(key, __u32);			\
	__type(value, __u64);			\
	__uint(max_entries, 4);			\
} name SEC(".maps")

SOCKET_MAP(streams);
SOCKET_MAP(others);
SOCKET_MAP(senders);
HOOK("sk_skb/stream_parser", parser, struct __sk_buff, 1, ctx->len)
HOOK("sk_skb/stream_verdict", verdict, void, 1, 1)
HOOK("sk_skb/verdict", plain, void, 1, 1)
HOOK("sk_msg", message, void, 1, 1)
#elif defined(TRACES)
HOOK("tracepoint/syscalls/sys_enter_getpgid", tracepoint, void, OUR_PROCESS, 0)
HOOK("raw_tp/sys_enter", raw, __u64, OUR_CALL, 0)
HOOK("tp_btf/sys_enter", typed, __u64, OUR_CALL, 0)
HOOK("uprobe", entry, void, 1, 0)
HOOK("uretprobe", leave, void, 1, 0)
HOOK("perf_event", sampled, void, OUR_PROCESS, 0)
#elif defined(MULTI)
HOOK("uprobe.multi", entries, void, 1, 0)
HOOK("uretprobe.multi", leaves, void, 1, 0)
#elif defined(ITERATORS)
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} table SEC(".maps");

HOOK("iter/task", tasks, void, 1, 0)
HOOK("iter/bpf_map", maps, void, 1, 0)
HOOK("iter/bpf_map_elem", elements, void, 1, 0)
#elif defined(FUNCTIONS)
HOOK("fentry", entered, void, OUR_PROCESS, 0)
HOOK("fexit", left, void, OUR_PROCESS, 0)
HOOK("kprobe", probe, void, OUR_PROCESS, 0)
HOOK("kretprobe", return_probe, void, OUR_PROCESS, 0)
HOOK("kprobe.multi", probes, void, OUR_PROCESS, 0)
#elif defined(SECURITY)
HOOK("lsm/task_getpgid", allowed, void, OUR_PROCESS, 0)
#endif

char LICENSE[] SEC("license") = "GPL";
