// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A program that looks two values up in whatever inner map stands in the outer one; both belong to one
 * table, so that a pair of different values has been seen while the table was changed.
 *
 * OUTER	type of the outer map	INNER_ENTRIES	max_entries of the inner ones
 * FILLED	the object fills slot 0
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef OUTER
#define OUTER BPF_MAP_TYPE_ARRAY_OF_MAPS
#endif
#ifndef INNER_ENTRIES
#define INNER_ENTRIES 2
#endif

struct table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, INNER_ENTRIES);
	__type(key, __u32);
	__type(value, __u64);
};

#ifdef FILLED
struct table first SEC(".maps");
#endif

struct {
	__uint(type, OUTER);
	__uint(max_entries, 4);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(values, struct table);
} tables SEC(".maps")
#ifdef FILLED
= { .values = { [0] = &first } }
#endif
;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} seen SEC(".maps");

SEC("cgroup_skb/egress")
int look(struct __sk_buff *skb)
{
	__u32 zero = 0, one = 1;
	void *table = bpf_map_lookup_elem(&tables, &zero);
	__u64 *a, *b, *count;
	__u32 which = 15;

	if (table) {
		a = bpf_map_lookup_elem(table, &zero);
		b = bpf_map_lookup_elem(table, &one);
		if (a && b)
			which = *a == *b && *a < 14 ? *a : 14;
	}
	count = bpf_map_lookup_elem(&seen, &which);
	if (count)
		__sync_fetch_and_add(count, 1);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
