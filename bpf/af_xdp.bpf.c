// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * UDP packets of an interface to AF_XDP sockets, in turn; all else goes to the network stack.
 *
 * The sockets belong to another process: it opens the pinned XSKMAP and puts them in. A socket is
 * bound to one receive queue and can be given that queue's packets only, so each queue has slots of
 * its own: queue q those from q * SOCKETS_PER_QUEUE on. Empty slots are passed over, and a packet
 * for which there is no socket goes to the stack. A socket that is closed leaves its slot by itself.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define QUEUES 64
#define SOCKETS_PER_QUEUE 4

struct queue {
	__u64 redirected; /* packets that a socket was given; what its rings had no room for, too */
	__u64 passed;     /* UDP packets that found no socket */
	__u64 turn;       /* the slot to be tried first */
};

/* No pinning attributes: the manifest asks for the pins. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES *SOCKETS_PER_QUEUE);
	__type(key, __u32);
	__type(value, __u32); /* descriptor of a socket */
} xdp_sockets SEC(".maps");

/* By receive queue. A queue is served by one CPU at a time, so nothing here is atomic. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, QUEUES);
	__type(key, __u32);
	__type(value, struct queue);
} xdp_queues SEC(".maps");

static __always_inline int is_udp(void *frame, void *end)
{
	struct ethhdr *ethernet = frame;
	struct iphdr *ipv4 = (void *)(ethernet + 1);
	struct ipv6hdr *ipv6 = (void *)(ethernet + 1);

	if ((void *)(ipv4 + 1) > end)
		return 0;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		return ipv4->protocol == IPPROTO_UDP;
	if (ethernet->h_proto == bpf_htons(ETH_P_IPV6) && (void *)(ipv6 + 1) <= end)
		return ipv6->nexthdr == IPPROTO_UDP;
	return 0;
}

SEC("xdp")
int to_sockets(struct xdp_md *ctx)
{
	__u32 index = ctx->rx_queue_index;
	struct queue *queue;
	__u32 tried, slot;

	if (!is_udp((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		return XDP_PASS;
	queue = bpf_map_lookup_elem(&xdp_queues, &index);
	if (!queue)
		return XDP_PASS;
#pragma unroll
	for (tried = 0; tried < SOCKETS_PER_QUEUE; tried++) {
		slot = queue->turn++ % SOCKETS_PER_QUEUE;
		/* The flags are what is answered when the slot is empty. */
		if (bpf_redirect_map(&xdp_sockets, index * SOCKETS_PER_QUEUE + slot, XDP_PASS) ==
		    XDP_REDIRECT) {
			queue->redirected++;
			return XDP_REDIRECT;
		}
	}
	queue->passed++;
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
