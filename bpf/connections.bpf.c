// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Connections through an interface, and traffic with each remote address, in tables that never fill
 * up: when one is full, what was not seen for longest makes room.
 *
 * Everything is told from this machine's side: local is where packets that come in go to, and where
 * those that leave come from. Each connection has one entry for both directions. Bytes are what the
 * IP header says. Every packet goes on: to the next program here, and to where it is meant for.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef CONNECTIONS_MAX
#define CONNECTIONS_MAX 65536
#endif
#ifndef REMOTES_MAX
#define REMOTES_MAX 16384
#endif

/* Newer headers have it in enum tcx_action_base. */
#define TCX_NEXT -1

struct address {
	__u8 bytes[16]; /* IPv6; IPv4 as ::ffff:a.b.c.d */
};

struct connection {
	struct address local;
	struct address remote;
	__be16 local_port; /* both 0 for protocols without ports, and for later fragments */
	__be16 remote_port;
	__u32 protocol; /* 1 ICMP, 6 TCP, 17 UDP; IPv6: what follows the fixed header */
};

struct traffic {
	__u64 packets;
	__u64 bytes;
};

struct seen {
	__u64 first_ns; /* since boot, as clock_gettime(CLOCK_MONOTONIC) has it */
	__u64 last_ns;
	struct traffic in;
	struct traffic out;
	__u32 tcp_flags; /* all that were seen: 1 FIN, 2 SYN, 4 RST, 8 PSH, 16 ACK, 32 URG */
};

struct both {
	struct traffic in;
	struct traffic out;
};

/* No pinning attributes: the manifest asks for the pins. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CONNECTIONS_MAX);
	__type(key, struct connection);
	__type(value, struct seen);
} connections SEC(".maps");

/* Counted on each CPU by itself: whoever reads adds them up. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, REMOTES_MAX);
	__type(key, struct address);
	__type(value, struct both);
} remotes SEC(".maps");

/* Offsets are from the IP header, wherever that is: not every interface has Ethernet before it. */
static __always_inline long load(struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
	return bpf_skb_load_bytes_relative(skb, offset, to, size, BPF_HDR_START_NET);
}

static __always_inline void map_ipv4(struct address *address, __be32 ipv4)
{
	address->bytes[10] = 0xff;
	address->bytes[11] = 0xff;
	__builtin_memcpy(&address->bytes[12], &ipv4, sizeof(ipv4));
}

/* A packet, as it is read from its IP header. */
struct packet {
	struct connection connection; /* with its source as local, its destination as remote */
	__u32 bytes;
	__u32 next_header; /* offset from the IP header */
	__u8 tcp_flags;
};

/* Returns 0, or less than 0 if it is not IP. */
static __always_inline int read_addresses(struct __sk_buff *skb, struct packet *packet)
{
	struct connection *connection = &packet->connection;
	struct ipv6hdr ipv6;
	struct iphdr ipv4;

	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		if (load(skb, 0, &ipv4, sizeof(ipv4)) < 0)
			return -1;
		map_ipv4(&connection->local, ipv4.saddr);
		map_ipv4(&connection->remote, ipv4.daddr);
		connection->protocol = ipv4.protocol;
		packet->bytes = bpf_ntohs(ipv4.tot_len);
		/* Past the end of any packet for a later fragment: it has no ports. */
		packet->next_header = ipv4.frag_off & bpf_htons(0x1fff) ? 0xffff : ipv4.ihl * 4;
		return 0;
	case bpf_htons(ETH_P_IPV6):
		if (load(skb, 0, &ipv6, sizeof(ipv6)) < 0)
			return -1;
		__builtin_memcpy(&connection->local, &ipv6.saddr, sizeof(struct address));
		__builtin_memcpy(&connection->remote, &ipv6.daddr, sizeof(struct address));
		connection->protocol = ipv6.nexthdr;
		packet->bytes = sizeof(ipv6) + bpf_ntohs(ipv6.payload_len);
		packet->next_header = sizeof(ipv6);
		return 0;
	}
	return -1;
}

static __always_inline void read_ports(struct __sk_buff *skb, struct packet *packet)
{
	struct connection *connection = &packet->connection;
	__be16 ports[2];

	if (connection->protocol != IPPROTO_TCP && connection->protocol != IPPROTO_UDP)
		return;
	if (load(skb, packet->next_header, ports, sizeof(ports)) < 0)
		return;
	connection->local_port = ports[0];
	connection->remote_port = ports[1];
	if (connection->protocol == IPPROTO_TCP)
		load(skb, packet->next_header + 13, &packet->tcp_flags, 1);
}

static __always_inline void turn_around(struct connection *connection)
{
	struct address address = connection->local;
	__be16 port = connection->local_port;

	connection->local = connection->remote;
	connection->local_port = connection->remote_port;
	connection->remote = address;
	connection->remote_port = port;
}

static __always_inline void count_connection(struct packet *packet, int inwards)
{
	struct seen new = {}, *seen = bpf_map_lookup_elem(&connections, &packet->connection);
	__u64 now = bpf_ktime_get_ns();
	struct traffic *traffic;

	if (!seen) {
		new.first_ns = now;
		/* NOEXIST: another CPU may have been faster, and may have counted already. */
		bpf_map_update_elem(&connections, &packet->connection, &new, BPF_NOEXIST);
		seen = bpf_map_lookup_elem(&connections, &packet->connection);
		if (!seen)
			return;
	}
	seen->last_ns = now;
	seen->tcp_flags |= packet->tcp_flags; /* two CPUs at a time may lose one: they rarely are */
	traffic = inwards ? &seen->in : &seen->out;
	__sync_fetch_and_add(&traffic->packets, 1);
	__sync_fetch_and_add(&traffic->bytes, packet->bytes);
}

static __always_inline void count_remote(struct packet *packet, int inwards)
{
	struct address *remote = &packet->connection.remote;
	struct both none = {}, *both = bpf_map_lookup_elem(&remotes, remote);
	struct traffic *traffic;

	if (!both) {
		bpf_map_update_elem(&remotes, remote, &none, BPF_NOEXIST);
		both = bpf_map_lookup_elem(&remotes, remote);
		if (!both)
			return;
	}
	traffic = inwards ? &both->in : &both->out;
	traffic->packets++;
	traffic->bytes += packet->bytes;
}

static __always_inline int track(struct __sk_buff *skb, int inwards)
{
	struct packet packet = {};

	if (read_addresses(skb, &packet) < 0)
		return TCX_NEXT;
	read_ports(skb, &packet);
	if (inwards)
		turn_around(&packet.connection);
	count_connection(&packet, inwards);
	count_remote(&packet, inwards);
	return TCX_NEXT;
}

SEC("tcx/ingress")
int track_ingress(struct __sk_buff *skb)
{
	return track(skb, 1);
}

SEC("tcx/egress")
int track_egress(struct __sk_buff *skb)
{
	return track(skb, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
