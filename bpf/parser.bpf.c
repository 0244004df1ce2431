// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A protocol parser in stages: each header has a program of its own, which reads it and hands the
 * packet to the next one by a tail call. What comes out is packets by transport protocol and
 * destination port; every packet goes on.
 *
 *	parse_ethernet --> parse_ipv4 --> parse_tcp
 *	              \--> parse_ipv6 --> parse_udp
 *
 * parse_ethernet is attached. The others are reached through the slots of a PROG_ARRAY, which the
 * manifest fills by their names: to add a stage is to write a program and to name a slot.
 *
 * Stages hand over what they know in skb->cb, and that includes what version of the object they are
 * of: another version may have put something else there, so a packet must pass stages of one
 * version only. The map `paths` tells whether it did.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef VERSION
#define VERSION 1
#endif

#define NEXT -1 /* TCX_NEXT: what else is attached decides about the packet */

/* Slots of `stages`, as the manifest fills them. */
enum stage {
	IPV4,
	IPV6,
	TCP,
	UDP,
	STAGES_MAX = 8, /* the other slots are for more */
};

/* Words of skb->cb. */
enum handed_over {
	OFFSET, /* where the next header begins */
	ETHERNET_VERSION,
	NETWORK_VERSION,
};

struct service {
	__u32 protocol; /* IPPROTO_TCP, IPPROTO_UDP */
	__u32 port;	/* destination, host byte order */
};

struct path {
	__u32 ethernet; /* the version of the program that each stage was */
	__u32 network;
	__u32 transport;
};

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, STAGES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} stages SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct service);
	__type(value, __u64); /* packets */
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct path);
	__type(value, __u64); /* packets */
} paths SEC(".maps");

static __always_inline void count(void *map, const void *key)
{
	__u64 none = 0, *packets = bpf_map_lookup_elem(map, key);

	if (!packets) {
		bpf_map_update_elem(map, key, &none, BPF_NOEXIST);
		packets = bpf_map_lookup_elem(map, key);
	}
	if (packets)
		__sync_fetch_and_add(packets, 1);
}

static __always_inline void to_transport(struct __sk_buff *skb, __u8 protocol)
{
	skb->cb[NETWORK_VERSION] = VERSION;
	if (protocol == IPPROTO_TCP)
		bpf_tail_call(skb, &stages, TCP);
	else if (protocol == IPPROTO_UDP)
		bpf_tail_call(skb, &stages, UDP);
	/* Another protocol, or nothing is in the slot. */
}

/* TCP and UDP have their ports in the same place. */
static __always_inline void count_service(struct __sk_buff *skb, __u32 protocol)
{
	struct service service = { .protocol = protocol };
	struct path path = {
		.ethernet = skb->cb[ETHERNET_VERSION],
		.network = skb->cb[NETWORK_VERSION],
		.transport = VERSION,
	};
	__be16 port;

	if (bpf_skb_load_bytes(skb, skb->cb[OFFSET] + offsetof(struct udphdr, dest), &port, 2) < 0)
		return;
	service.port = bpf_ntohs(port);
	count(&services, &service);
	count(&paths, &path);
}

SEC("tcx/ingress")
int parse_ethernet(struct __sk_buff *skb)
{
	skb->cb[OFFSET] = sizeof(struct ethhdr);
	skb->cb[ETHERNET_VERSION] = VERSION;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		bpf_tail_call(skb, &stages, IPV4);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		bpf_tail_call(skb, &stages, IPV6);
	return NEXT;
}

SEC("tc")
int parse_ipv4(struct __sk_buff *skb)
{
	__u32 offset = skb->cb[OFFSET];
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) < 0)
		return NEXT;
	if (ip.frag_off & bpf_htons(0x1fff)) /* not the first fragment: it has no ports */
		return NEXT;
	skb->cb[OFFSET] = offset + ip.ihl * 4;
	to_transport(skb, ip.protocol);
	return NEXT;
}

SEC("tc")
int parse_ipv6(struct __sk_buff *skb)
{
	__u32 offset = skb->cb[OFFSET];
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) < 0)
		return NEXT;
	skb->cb[OFFSET] = offset + sizeof(ip);
	to_transport(skb, ip.nexthdr); /* an extension header: a stage of its own could read it */
	return NEXT;
}

SEC("tc")
int parse_tcp(struct __sk_buff *skb)
{
	count_service(skb, IPPROTO_TCP);
	return NEXT;
}

SEC("tc")
int parse_udp(struct __sk_buff *skb)
{
	count_service(skb, IPPROTO_UDP);
	return NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
