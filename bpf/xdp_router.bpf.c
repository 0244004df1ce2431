// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * An IPv4 router in XDP, with tables of its own: what it cannot forward goes to the network stack.
 *
 *   routes      longest prefix match: network -> gateway, port
 *   neighbours  next hop -> its MAC address
 *   hops        exact match: destination -> what the two above said a moment ago
 *   ports       port number -> interface
 *
 * A destination that is not in `hops`, or for too long, is looked up in the other two and stored: a
 * change of theirs takes effect within CACHE_SECONDS. When `hops` is full, new destinations are
 * looked up for each packet. The source MAC of what leaves is the address at which the frame
 * arrived, so ports must not be on one and the same Ethernet.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef CACHE_SECONDS
#define CACHE_SECONDS 1
#endif

struct network {
	__u32 prefix_len;
	__be32 address;
};

struct route {
	__be32 gateway; /* 0.0.0.0: destinations are neighbours themselves */
	__u32 port;
};

struct neighbour {
	__u8 mac[ETH_ALEN];
};

struct hop {
	__u64 looked_up_ns;
	__u32 port;
	__u8 mac[ETH_ALEN];
};

enum outcome {
	FROM_CACHE,   /* forwarded; `hops` knew the way */
	FROM_ROUTES,  /* forwarded; looked up in `routes` and `neighbours` */
	NO_ROUTE,     /* to the stack, as all that follow */
	NO_NEIGHBOUR, /* the stack of a router may know one, and ask the network */
	NO_PORT,      /* the route's port has no interface */
	TTL_EXCEEDED, /* the stack answers with the ICMP error */
	NOT_IPV4,     /* or with IP options, or to a multicast or broadcast MAC */
	OUTCOMES,
};

/* No pinning attributes: the manifest asks for the pins. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct network);
	__type(value, struct route);
} routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __be32);
	__type(value, struct neighbour);
} neighbours SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __be32);
	__type(value, struct hop);
} hops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32); /* interface index */
} ports SEC(".maps");

/* Packets, by enum outcome. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} outcomes SEC(".maps");

static __always_inline void count(__u32 outcome)
{
	__u64 *packets = bpf_map_lookup_elem(&outcomes, &outcome);

	if (packets)
		__sync_fetch_and_add(packets, 1);
}

/* Returns FROM_ROUTES with the hop filled in, or why there is none. */
static __always_inline enum outcome look_up(__be32 destination, struct hop *hop)
{
	struct network network = {.prefix_len = 32, .address = destination};
	struct route *route = bpf_map_lookup_elem(&routes, &network);
	struct neighbour *neighbour;
	__be32 next;

	if (!route)
		return NO_ROUTE;
	next = route->gateway ? route->gateway : destination;
	neighbour = bpf_map_lookup_elem(&neighbours, &next);
	if (!neighbour)
		return NO_NEIGHBOUR;
	hop->port = route->port;
	__builtin_memcpy(hop->mac, neighbour->mac, ETH_ALEN);
	return FROM_ROUTES;
}

static __always_inline enum outcome find_hop(__be32 destination, struct hop *hop)
{
	struct hop *cached = bpf_map_lookup_elem(&hops, &destination);
	__u64 now = bpf_ktime_get_ns();
	enum outcome outcome;

	if (cached && now - cached->looked_up_ns < CACHE_SECONDS * 1000000000ull) {
		*hop = *cached;
		return FROM_CACHE;
	}
	hop->looked_up_ns = now;
	outcome = look_up(destination, hop);
	if (outcome == FROM_ROUTES)
		bpf_map_update_elem(&hops, &destination, hop, BPF_ANY);
	else if (cached)
		bpf_map_delete_elem(&hops, &destination);
	return outcome;
}

/* The TTL is the upper half of a 16-bit word, and the checksum the inverted sum of all words. */
static __always_inline void decrease_ttl(struct iphdr *ip)
{
	__u32 check = ip->check;

	check += bpf_htons(0x0100);
	ip->check = (__u16)(check + (check >= 0xffff));
	ip->ttl--;
}

SEC("xdp")
int route_ipv4(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct hop hop = {};
	enum outcome outcome;

	if ((void *)(ip + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 ||
	    ethernet->h_dest[0] & 1) {
		count(NOT_IPV4);
		return XDP_PASS;
	}
	if (ip->ttl <= 1) {
		count(TTL_EXCEEDED);
		return XDP_PASS;
	}
	outcome = find_hop(ip->daddr, &hop);
	if (outcome != FROM_CACHE && outcome != FROM_ROUTES) {
		count(outcome);
		return XDP_PASS;
	}
	/* Asked before the packet is changed: the flags are what is answered for an empty slot. */
	if (bpf_redirect_map(&ports, hop.port, XDP_PASS) != XDP_REDIRECT) {
		count(NO_PORT);
		return XDP_PASS;
	}
	decrease_ttl(ip);
	__builtin_memcpy(ethernet->h_source, ethernet->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, hop.mac, ETH_ALEN);
	count(outcome);
	return XDP_REDIRECT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
