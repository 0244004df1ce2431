// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * An interface that some cgroups cannot send through: what a process sends is dropped if the
 * process is in one of the cgroups that are listed in a CGROUP_ARRAY, or in a child of one.
 *
 * All else goes on, also what belongs to no socket of this machine, because it is forwarded. A
 * socket belongs to the cgroup that its maker was in when he made it.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef VERSION
#define VERSION 1
#endif

#define NEXT -1 /* TCX_NEXT: what else is attached decides about the packet */
#define DROP 2	/* TCX_DROP */

#define CGROUPS_MAX 4

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, CGROUPS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} blocked_cgroups SEC(".maps");

struct filtered {
	__u64 passed; /* packets */
	__u64 dropped;
	__u64 version; /* of the program that was here last */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct filtered);
} filtered SEC(".maps");

static __always_inline int is_blocked(struct __sk_buff *skb)
{
	int slot;

#pragma unroll
	for (slot = 0; slot < CGROUPS_MAX; slot++)
		/* 1: in there; 0: not; less than 0: the slot is empty, or nobody's packet. */
		if (bpf_skb_under_cgroup(skb, &blocked_cgroups, slot) == 1)
			return 1;
	return 0;
}

SEC("tcx/egress")
int filter_by_cgroup(struct __sk_buff *skb)
{
	int blocked = is_blocked(skb);
	__u32 first = 0;
	struct filtered *count = bpf_map_lookup_elem(&filtered, &first);

	if (count) {
		__sync_fetch_and_add(blocked ? &count->dropped : &count->passed, 1);
		count->version = VERSION;
	}
	return blocked ? DROP : NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
