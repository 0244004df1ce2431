// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A TCP congestion control that sends as fast as it can, and counts how often it is asked, and how
 * many connections begin with it.
 *
 * NAME	what TCP_CONGESTION calls it	VERSION	slot of the counts
 * SECTION	".struct_ops" or ".struct_ops.link"
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#ifndef VERSION
#define VERSION 1
#endif
#ifndef SECTION
#define SECTION ".struct_ops"
#endif

struct sock;

struct tcp_congestion_ops {
	void (*init)(struct sock *sk);
	__u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	__u32 (*undo_cwnd)(struct sock *sk);
	char name[16];
} __attribute__((preserve_access_index));

#define COUNTS(name)				\
struct {					\
	__uint(type, BPF_MAP_TYPE_ARRAY);	\
	__type(key, __u32);			\
	__type(value, __u64);			\
	__uint(max_entries, 4);			\
} name SEC(".maps")

COUNTS(seen);
COUNTS(begun);

static __always_inline void count(void *map)
{
	__u32 version = VERSION;
	__u64 *value = bpf_map_lookup_elem(map, &version);

	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("struct_ops/init")
void BPF_PROG(init, struct sock *sk)
{
	count(&begun);
}

SEC("struct_ops/ssthresh")
__u32 BPF_PROG(ssthresh, struct sock *sk)
{
	return 1 << 20;
}

SEC("struct_ops/cong_avoid")
void BPF_PROG(cong_avoid, struct sock *sk, __u32 ack, __u32 acked)
{
	count(&seen);
}

SEC("struct_ops/undo_cwnd")
__u32 BPF_PROG(undo_cwnd, struct sock *sk)
{
	return 100;
}

SEC(SECTION)
struct tcp_congestion_ops ops = {
	.init = (void *)init,
	.ssthresh = (void *)ssthresh,
	.cong_avoid = (void *)cong_avoid,
	.undo_cwnd = (void *)undo_cwnd,
	.name = NAME,
};

char LICENSE[] SEC("license") = "GPL";
