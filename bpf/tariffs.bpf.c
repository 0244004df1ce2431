// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * What the traffic of a cgroup costs: each packet that it sends gets a class by its destination,
 * and is billed by the tariff of that class. Tables that belong together are maps inside of maps,
 * so that one of them can be replaced whole while packets pass: a lookup in the outer map gives
 * either the former table or the new one, and what is then read from it is all of one table.
 *
 *	address_classes	hash of hash	protocol -> (destination address -> class)
 *	port_classes	hash of array	protocol -> (destination port -> class)
 *	tariffs		array of array	class -> (price of a packet, price of a byte)
 *
 * An address goes before a port; what is in neither table has class 0. Only IPv4 is billed.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef VERSION
#define VERSION 1
#endif

#define PASS 1
#define CLASSES 8

/* Indexes into a tariff. */
enum { PACKET_PRICE, BYTE_PRICE, PRICES };

struct address_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024); /* a hash of another size fits as well */
	__type(key, __be32);
	__type(value, __u32); /* class */
};

struct port_table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536); /* an array of another size does not */
	__type(key, __u32);
	__type(value, __u32); /* class */
};

struct tariff {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PRICES);
	__type(key, __u32);
	__type(value, __u64); /* in whatever money is */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 16);
	__type(key, __u32); /* IP protocol */
	__array(values, struct address_table);
} address_classes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 16);
	__type(key, __u32); /* IP protocol */
	__array(values, struct port_table);
} port_classes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, CLASSES);
	__type(key, __u32); /* class */
	__array(values, struct tariff);
} tariffs SEC(".maps");

/* A line for each pair of prices that packets of a class were billed by. */
struct line {
	__u32 class;
	__u32 version; /* of this program */
	__u64 packet_price;
	__u64 byte_price;
};

struct amount {
	__u64 packets;
	__u64 bytes; /* from the IP header on */
	__u64 cost;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct line);
	__type(value, struct amount);
} bill SEC(".maps");

static __always_inline __u32 class_of(__u32 protocol, __be32 address, __u32 port)
{
	void *table;
	__u32 *class = NULL;

	table = bpf_map_lookup_elem(&address_classes, &protocol);
	if (table)
		class = bpf_map_lookup_elem(table, &address);
	if (class)
		return *class;
	table = bpf_map_lookup_elem(&port_classes, &protocol);
	if (table)
		class = bpf_map_lookup_elem(table, &port);
	return class ? *class : 0;
}

/* Both prices from one tariff. Returns 0, or less than 0 if the class has none. */
static __always_inline int read_tariff(struct line *line)
{
	__u32 packet = PACKET_PRICE, byte = BYTE_PRICE;
	__u64 *packet_price, *byte_price;
	void *tariff = bpf_map_lookup_elem(&tariffs, &line->class);

	if (!tariff)
		return -1;
	packet_price = bpf_map_lookup_elem(tariff, &packet);
	byte_price = bpf_map_lookup_elem(tariff, &byte);
	if (!packet_price || !byte_price)
		return -1;
	line->packet_price = *packet_price;
	line->byte_price = *byte_price;
	return 0;
}

static __always_inline void add(const struct line *line, __u64 bytes)
{
	struct amount none = {}, *amount = bpf_map_lookup_elem(&bill, line);

	if (!amount) {
		bpf_map_update_elem(&bill, line, &none, BPF_NOEXIST);
		amount = bpf_map_lookup_elem(&bill, line);
	}
	if (!amount)
		return;
	__sync_fetch_and_add(&amount->packets, 1);
	__sync_fetch_and_add(&amount->bytes, bytes);
	__sync_fetch_and_add(&amount->cost, line->packet_price + bytes * line->byte_price);
}

SEC("cgroup_skb/egress")
int bill_packet(struct __sk_buff *skb)
{
	struct line line = {};
	struct iphdr ip;
	__be16 port = 0;

	line.version = VERSION;
	/* At this hook a packet begins with its IP header. */
	if (skb->protocol != bpf_htons(ETH_P_IP) || bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) < 0)
		return PASS;
	if (ip.protocol == IPPROTO_TCP || ip.protocol == IPPROTO_UDP) /* the same place in both */
		bpf_skb_load_bytes(skb, ip.ihl * 4 + offsetof(struct udphdr, dest), &port, 2);
	line.class = class_of(ip.protocol, ip.daddr, bpf_ntohs(port));
	if (read_tariff(&line) == 0)
		add(&line, skb->len);
	return PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
