// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Two stages behind tail calls. Each packet carries the version of the program it entered by; a stage
 * of another version counts it as mixed, the last one as whole, by its version.
 *
 * VERSION	of all programs		STATIC	the object fills the slots itself
 * FIRST_ONLY	one of them only
 * ARRAY	name of the array	PIN	the array is declared LIBBPF_PIN_BY_NAME
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef VERSION
#define VERSION 1
#endif
#ifndef ARRAY
#define ARRAY jumps
#endif

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} whole SEC(".maps"), mixed SEC(".maps");

int stage_a(struct __sk_buff *skb);
int stage_b(struct __sk_buff *skb);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, sizeof(__u32));
#ifdef PIN
	__uint(pinning, LIBBPF_PIN_BY_NAME);
#endif
#ifdef STATIC
	__array(values, int(void *));
} ARRAY SEC(".maps") = {
	.values = {
		[0] = (void *)&stage_a,
#ifndef FIRST_ONLY
		[1] = (void *)&stage_b,
#endif
	},
};
#else
	__uint(value_size, sizeof(__u32));
} ARRAY SEC(".maps");
#endif

static __always_inline void add(void *map, __u32 key)
{
	__u64 *value = bpf_map_lookup_elem(map, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("cgroup_skb/egress")
int enter(struct __sk_buff *skb)
{
	skb->cb[0] = VERSION;
	bpf_tail_call(skb, &ARRAY, 0);
	add(&mixed, 0); /* nothing in the slot */
	return 1;
}

SEC("cgroup_skb/egress")
int stage_a(struct __sk_buff *skb)
{
	if (skb->cb[0] != VERSION)
		add(&mixed, VERSION);
	bpf_tail_call(skb, &ARRAY, 1);
	add(&mixed, 0);
	return 1;
}

SEC("cgroup_skb/egress")
int stage_b(struct __sk_buff *skb)
{
	add(skb->cb[0] == VERSION ? (void *)&whole : (void *)&mixed, VERSION);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
