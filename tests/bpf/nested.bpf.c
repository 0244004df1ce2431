// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* Maps of maps, both kinds, to be filled by whoever wants. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 10);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 20);
	__array(values, struct table);
} by_number SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__type(key, __u16);
	__uint(max_entries, 20);
	__array(values, struct table);
} by_port SEC(".maps");

SEC("cgroup_skb/egress")
int look(struct __sk_buff *skb)
{
	__u32 number = 0;
	__u16 port = 0;

	return bpf_map_lookup_elem(&by_number, &number) || bpf_map_lookup_elem(&by_port, &port) || 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
