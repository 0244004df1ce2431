// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * State in global variables.
 *
 * STEP	added to steps at each event	MORE	a further variable, before the others
 * WIDE	steps is wider			LIMIT	constant data
 * NO_TOTAL	one variable less	REFUSED	the verifier refuses the program
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef STEP
#define STEP 1
#endif
#ifndef LIMIT
#define LIMIT 1
#endif

#ifdef MORE
__u64 another[4];
#endif
__u64 events;
#ifdef WIDE
struct { __u64 low, high; } steps;
#else
__u64 steps;
#endif
__u32 generation = 7; /* in .data */
#ifndef NO_TOTAL
struct total {
	__u64 packets;
	__u32 bytes;
} total;
#endif
const volatile __u32 limit = LIMIT;

SEC("cgroup_skb/egress")
int count(struct __sk_buff *skb)
{
	__sync_fetch_and_add(&events, limit);
#ifdef WIDE
	__sync_fetch_and_add(&steps.low, STEP);
#else
	__sync_fetch_and_add(&steps, STEP);
#endif
#ifndef NO_TOTAL
	__sync_fetch_and_add(&total.packets, 1);
	total.bytes = skb->len;
#endif
#ifdef MORE
	another[0]++;
#endif
	generation++;
#ifdef REFUSED
	while (1) /* never ends: the verifier says so */
		generation++;
#endif
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
