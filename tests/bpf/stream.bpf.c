// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Writes an event for each packet that leaves the cgroup.
 *
 * SIZE	of the ring	VERSION	what an event says	REFUSED	the verifier refuses the program
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef SIZE
#define SIZE (1 << 20)
#endif
#ifndef VERSION
#define VERSION 1
#endif

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, SIZE);
} ring SEC(".maps");

SEC("cgroup_skb/egress")
int tell(struct __sk_buff *skb)
{
	__u64 version = VERSION;

	bpf_ringbuf_output(&ring, &version, sizeof(version), 0);
#ifdef REFUSED
	while (1) /* never ends: the verifier says so */
		bpf_ringbuf_output(&ring, &version, sizeof(version), 0);
#endif
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
