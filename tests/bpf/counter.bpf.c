// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * One object for many tests: counts events of a hook in a map. What differs between two versions
 * of it is chosen with -D when it is compiled.
 *
 * HOOK	section of the program	STEP	added at each event
 * MAP	name of the map		ENTRIES	its max_entries
 * TYPE	of the map		PIN	pinning attribute
 * REORDERED, WIDER	another struct value
 * UNUSED	the program leaves the map alone
 * REFUSED	the verifier refuses the program
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef HOOK
#define HOOK "cgroup_skb/egress"
#endif
#ifndef PROGRAM
#define PROGRAM count
#endif
#ifndef STEP
#define STEP 1
#endif
#ifndef MAP
#define MAP counts
#endif
#ifndef ENTRIES
#define ENTRIES 16
#endif
#ifndef TYPE
#define TYPE BPF_MAP_TYPE_HASH
#endif
#ifndef VERDICT
#define VERDICT 1
#endif

struct value {
#ifdef REORDERED
	__u64 steps, events;
#else
	__u64 events, steps;
#endif
#ifdef WIDER
	__u64 more;
#endif
};

struct {
	__uint(type, TYPE);
	__type(key, __u32);
	__type(value, struct value);
	__uint(max_entries, ENTRIES);
#ifdef PIN
	__uint(pinning, LIBBPF_PIN_BY_NAME);
#endif
} MAP SEC(".maps");

#ifdef SECOND_MAP
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, SECOND_MAP);
} second SEC(".maps");
#endif

SEC(HOOK)
int PROGRAM(void *ctx)
{
#ifndef UNUSED
	__u32 key = 0;
	struct value *value, fresh = { .events = 1, .steps = STEP };
#endif

#ifdef REFUSED
	/* Reads through a pointer that may be null: the verifier says so. */
	value = bpf_map_lookup_elem(&MAP, &key);
	return value->events;
#endif
#ifdef SECOND_MAP
	bpf_map_lookup_elem(&second, &key);
#endif
#ifndef UNUSED
	value = bpf_map_lookup_elem(&MAP, &key);
	if (!value) {
		if (!bpf_map_update_elem(&MAP, &key, &fresh, BPF_NOEXIST))
			return VERDICT;
		value = bpf_map_lookup_elem(&MAP, &key);
	}
	if (value) {
		__sync_fetch_and_add(&value->events, 1);
		__sync_fetch_and_add(&value->steps, STEP);
	}
#endif
	return VERDICT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
