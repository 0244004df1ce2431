// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Programs that share a hook each add their number, WHO (1 to 15), to what those before them noted
 * of the same packet: what the last one leaves tells the order. The packet's mark says that it is
 * the same one. VERSION is any number.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} met SEC(".maps");

SEC("tcx/ingress")
int PROGRAM(struct __sk_buff *skb)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&met, &key);

	asm volatile("r0 = %0" : : "i"(VERSION) : "r0");
	if (!value)
		return -1;
	*value = (skb->mark ? *value : 0) * 16 + WHO;
	skb->mark = 1;
	return -1;	/* TCX_NEXT */
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
