// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* The smallest program that is of any use: one lookup, one addition. VERSION makes two files of it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* The digits are replaced in the compiled object, to have as many maps as there are objects. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} counts_000 SEC(".maps");

SEC("cgroup_skb/egress")
int count(struct __sk_buff *skb)
{
	__u32 key = 0;
	__u64 *packets = bpf_map_lookup_elem(&counts_000, &key);

	if (packets)
		__sync_fetch_and_add(packets, VERSION);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
