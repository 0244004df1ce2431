// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A bandwidth manager for cgroups: each cgroup that this is attached to may send at the rate that
 * the manifest gives, with bursts, and what is above that is dropped.
 *
 * The state is in cgroup storage: the kernel makes one for each cgroup as the program is attached
 * to it, and the program finds that of the cgroup it runs for without a key. `queues` has the
 * credit, one for all CPUs, under a lock; `sent` has the counters, one for each CPU, without.
 *
 * A token bucket: credit is in bytes and grows with time by the rate, up to the burst; a packet
 * that it does not cover is dropped. After a minute without a packet it is full.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef VERSION
#define VERSION 1
#endif

#define DROP 0
#define PASS 1

#define SECOND 1000000ULL /* microseconds */
#define MINUTE (60 * SECOND)

struct limit {
	__u64 rate;  /* bytes in a second; 0: no limit */
	__u64 burst; /* bytes */
};

struct queue {
	struct bpf_spin_lock lock;
	__u32 version; /* of the program that was here last */
	__u64 last;    /* microseconds since boot when credit was reckoned; 0: not yet */
	__u64 credit;  /* bytes that may be sent at that time */
};

struct sent {
	__u64 packets;
	__u64 bytes;
	__u64 dropped; /* packets */
};

/* One limit for all cgroups. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct limit);
} limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, struct bpf_cgroup_storage_key); /* cgroup ID and attach type */
	__type(value, struct queue);
} queues SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE);
	__type(key, struct bpf_cgroup_storage_key);
	__type(value, struct sent);
} sent SEC(".maps");

/* Takes the credit for a packet. Returns PASS, or DROP when there is not enough. */
static __always_inline int take(struct queue *queue, const struct limit *limit, __u64 bytes)
{
	__u64 now = bpf_ktime_get_ns() / 1000, rate = limit->rate, burst = limit->burst;
	__u64 passed, earned, credit;
	int verdict = DROP;

	bpf_spin_lock(&queue->lock);
	/* Another CPU may have come by with a later time. */
	passed = now > queue->last ? now - queue->last : 0;
	if (!queue->last || passed > MINUTE) {
		credit = burst;
		queue->last = now;
	} else {
		earned = passed * rate / SECOND;
		credit = queue->credit + earned;
		if (credit > burst)
			credit = burst;
		if (earned) /* else it was too short a time: let it add up */
			queue->last = now;
	}
	if (credit >= bytes) {
		credit -= bytes;
		verdict = PASS;
	}
	queue->credit = credit;
	queue->version = VERSION;
	bpf_spin_unlock(&queue->lock);
	return verdict;
}

SEC("cgroup_skb/egress")
int limit_bandwidth(struct __sk_buff *skb)
{
	struct queue *queue = bpf_get_local_storage(&queues, 0);
	struct sent *here = bpf_get_local_storage(&sent, 0);
	__u32 first = 0;
	struct limit *limit = bpf_map_lookup_elem(&limits, &first);

	if (limit && limit->rate && take(queue, limit, skb->len) == DROP) {
		here->dropped++;
		return DROP;
	}
	here->packets++;
	here->bytes += skb->len;
	return PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
