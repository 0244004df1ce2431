// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Counts what it sees, and what it would take for an error, so that somebody can judge it.
 *
 * MUTE		it counts nothing		WRONG	it counts errors, too
 * ENTRIES	max_entries of seen		VERSION	makes another file of it
 * REFUSED	the verifier refuses it
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef ENTRIES
#define ENTRIES 4
#endif
#ifndef VERSION
#define VERSION 0
#endif

struct where {
	__be32 address;
	__u16 port, zero;
};

struct seen {
	__u32 version, pad;
	__u64 packets;
	struct { __u64 wrong; char text[24]; } more;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct seen);
	__uint(max_entries, ENTRIES);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
} each_cpu SEC(".maps");

/* Has an entry for an error from the first one on. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct where);
	__type(value, __u64);
	__uint(max_entries, 8);
} errors SEC(".maps");

__u64 total;

SEC("cgroup_skb/egress")
int watch(struct __sk_buff *skb)
{
#ifndef MUTE
	__u32 key = 0;
	struct seen *now = bpf_map_lookup_elem(&seen, &key);
	__u64 *count = bpf_map_lookup_elem(&each_cpu, &key);

	if (now) {
		now->version = VERSION;
		__sync_fetch_and_add(&now->packets, 1);
	}
	if (count)
		(*count)++;
	__sync_fetch_and_add(&total, 1);
#endif
#ifdef WRONG
	struct where where = { 0x0100007f, 9, 0 };
	__u64 one = 1, *error = bpf_map_lookup_elem(&errors, &where);

	if (error)
		__sync_fetch_and_add(error, 1);
	else
		bpf_map_update_elem(&errors, &where, &one, BPF_NOEXIST);
#endif
#ifdef REFUSED
	while (1)
		total += skb->len;
#endif
	return 1;
}

/* Attached nowhere: nobody runs it. */
SEC("cgroup_skb/ingress")
int idle(struct __sk_buff *skb)
{
	return VERSION >= 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
