// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * One map of any type, and a program that refers to it.
 *
 * TYPE		number of the map type	BODY	the rest of its definition
 * HOOK		section of the program	USE	what the program does with the map, and returns
 * VERSION	any number: what differs between two versions of the object
 * STRUCT_OPS	instead of that map, functions that the kernel's test struct takes
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef VERSION
#define VERSION 1
#endif

#define USED_BY_SOME static __always_inline __attribute__((unused))
#define ANOTHER_VERSION asm volatile("r0 = %0" : : "i"(VERSION) : "r0")

#ifdef STRUCT_OPS

struct bpf_dummy_ops_state {
	int val;
} __attribute__((preserve_access_index));

struct bpf_dummy_ops {
	int (*test_1)(struct bpf_dummy_ops_state *state);
} __attribute__((preserve_access_index));

SEC("struct_ops/test_1")
int use(void *ctx)
{
	ANOTHER_VERSION;
	return 0;
}

SEC(".struct_ops")
struct bpf_dummy_ops kept = { .test_1 = (void *)use };

#else

struct prefix {
	__u32 length;
	__be32 address;
};

struct inner {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 4);
};

typedef __u64 frames[127];

struct {
	__uint(type, TYPE);
	BODY
} kept SEC(".maps");

/* The program has the map among its own; nothing more. */
USED_BY_SOME int refer(void *map)
{
	asm volatile("" : : "r"(map));
	return 0;
}

USED_BY_SOME int write_record(void *ring)
{
	__u64 record = 0x1122334455667788;

	return bpf_ringbuf_output(ring, &record, sizeof(record), 0);
}

USED_BY_SOME int read_counter(void *ctx, void *map)
{
	struct bpf_perf_event_value value;

	return bpf_perf_event_read_value(map, 0, &value, sizeof(value));
}

USED_BY_SOME int is_there(void *map)
{
	__u32 slot = 1;

	return bpf_map_lookup_elem(map, &slot) != 0;
}

SEC(HOOK)
int use(void *ctx)
{
	ANOTHER_VERSION;
	return USE;
}

#endif

char LICENSE[] SEC("license") = "Dual BSD/GPL";
