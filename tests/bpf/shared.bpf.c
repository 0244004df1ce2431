// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* A hash MAP of one number to another, of which key VERSION counts packets. PIN: pinned by name. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef MAP
#define MAP acl
#endif
#ifndef VERSION
#define VERSION 3
#endif
#ifndef ENTRIES
#define ENTRIES 16
#endif

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENTRIES);
	__type(key, __u32);
	__type(value, __u64);
#ifdef PIN
	__uint(pinning, LIBBPF_PIN_BY_NAME);
#endif
} MAP SEC(".maps");

#ifndef HOOK
#define HOOK "cgroup_skb/egress"
#endif

SEC(HOOK)
int count(struct __sk_buff *skb)
{
	__u32 key = VERSION;
	__u64 one = 1, *value = bpf_map_lookup_elem(&MAP, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
	else
		bpf_map_update_elem(&MAP, &key, &one, BPF_NOEXIST);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
