// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Where packets go to: packets and bytes for each destination address.
 *
 * Two programs that count into one hash, for two places. count_destinations counts what the
 * processes of a cgroup send. filter_destinations is a socket filter: the owner of a packet socket
 * of type SOCK_DGRAM attaches it (SO_ATTACH_BPF), and it counts what the socket sees, without
 * handing a single packet up to it.
 *
 * Bytes are those from the IP header on. What segmentation offload hands down in one piece is one
 * packet here, as tcpdump shows it. When the map is full, new addresses are not counted and those
 * already there go on; no packet is ever dropped.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PASS 1

struct destination {
	struct in6_addr address; /* IPv4 as ::ffff:a.b.c.d */
};

struct traffic {
	__u64 packets;
	__u64 bytes;
};

/* No pinning attribute: the manifest asks for the pin. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct destination);
	__type(value, struct traffic);
} destinations SEC(".maps");

/* Returns 0, or less than 0 if the packet is not IP. */
static __always_inline int read_destination(struct __sk_buff *skb, struct destination *to)
{
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		to->address.s6_addr[10] = 0xff;
		to->address.s6_addr[11] = 0xff;
		return bpf_skb_load_bytes_relative(skb, offsetof(struct iphdr, daddr),
						   &to->address.s6_addr[12], 4, BPF_HDR_START_NET);
	case bpf_htons(ETH_P_IPV6):
		return bpf_skb_load_bytes_relative(skb, offsetof(struct ipv6hdr, daddr),
						   &to->address, 16, BPF_HDR_START_NET);
	}
	return -1;
}

/* The counters of an address, made if need be; NULL when the map is full. */
static __always_inline struct traffic *traffic_to(const struct destination *to)
{
	struct traffic none = {};
	struct traffic *traffic = bpf_map_lookup_elem(&destinations, to);

	if (traffic)
		return traffic;
	/* NOEXIST: another CPU may have been faster, and may have counted already. */
	bpf_map_update_elem(&destinations, to, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&destinations, to);
}

static __always_inline void count(struct __sk_buff *skb)
{
	struct destination to = {};
	struct traffic *traffic;

	if (read_destination(skb, &to) < 0)
		return;
	traffic = traffic_to(&to);
	if (!traffic)
		return;
	__sync_fetch_and_add(&traffic->packets, 1);
	__sync_fetch_and_add(&traffic->bytes, skb->len);
}

SEC("cgroup_skb/egress")
int count_destinations(struct __sk_buff *skb)
{
	count(skb);
	return PASS;
}

SEC("socket")
int filter_destinations(struct __sk_buff *skb)
{
	count(skb);
	return 0; /* bytes of the packet that go up to the socket: none */
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
