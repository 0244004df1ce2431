// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A program of the size that people have: what a cgroup sends, by flow and by network, for IPv4 and
 * IPv6. Three maps, of which all are kept. VERSION makes two files of it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct flow {
	__u8 from[16], to[16];
	__u16 from_port, to_port;
	__u8 protocol, tos, pad[2];
};

struct traffic {
	__u64 packets, bytes, first_ns, last_ns;
	__u32 smallest, largest, version, pad;
};

struct network {
	__u32 bits;
	__u8 address[16];
};

/* The digits are replaced in the compiled object, to have as many maps as there are objects. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, struct flow);
	__type(value, struct traffic);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows_000 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, struct network);
	__type(value, struct traffic);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} networks_000 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct traffic);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} protocols_000 SEC(".maps");

/* Returns where the transport header begins, 0 if this is not IP. */
static __always_inline __u32 read_ipv4(struct __sk_buff *skb, struct flow *flow)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.ihl < 5)
		return 0;
	flow->protocol = ip.protocol;
	flow->tos = ip.tos;
	flow->from[10] = flow->from[11] = flow->to[10] = flow->to[11] = 0xff;
	__builtin_memcpy(&flow->from[12], &ip.saddr, 4);
	__builtin_memcpy(&flow->to[12], &ip.daddr, 4);
	if (ip.frag_off & bpf_htons(0x1fff)) /* only the first fragment has ports */
		return sizeof(ip) + skb->len;
	return ip.ihl * 4;
}

static __always_inline __u32 read_ipv6(struct __sk_buff *skb, struct flow *flow)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
		return 0;
	flow->protocol = ip.nexthdr;
	flow->tos = ip.priority << 4 | ip.flow_lbl[0] >> 4;
	__builtin_memcpy(flow->from, &ip.saddr, 16);
	__builtin_memcpy(flow->to, &ip.daddr, 16);
	return sizeof(ip);
}

static __always_inline int read_flow(struct __sk_buff *skb, struct flow *flow)
{
	__u32 transport = 0;
	__be16 ports[2];

	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		transport = read_ipv4(skb, flow);
		break;
	case bpf_htons(ETH_P_IPV6):
		transport = read_ipv6(skb, flow);
		break;
	}
	if (!transport)
		return -1;
	switch (flow->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if (bpf_skb_load_bytes(skb, transport, ports, sizeof(ports)))
			break;
		flow->from_port = bpf_ntohs(ports[0]);
		flow->to_port = bpf_ntohs(ports[1]);
	}
	return 0;
}

static __always_inline void add(struct traffic *traffic, __u32 bytes)
{
	__sync_fetch_and_add(&traffic->packets, 1);
	__sync_fetch_and_add(&traffic->bytes, bytes);
	traffic->last_ns = bpf_ktime_get_ns();
	if (!traffic->smallest || bytes < traffic->smallest)
		traffic->smallest = bytes;
	if (bytes > traffic->largest)
		traffic->largest = bytes;
}

static __always_inline void add_to_flow(const struct flow *flow, __u32 bytes)
{
	struct traffic *traffic = bpf_map_lookup_elem(&flows_000, flow);
	struct traffic fresh = { .version = VERSION };

	if (!traffic) {
		fresh.first_ns = bpf_ktime_get_ns();
		bpf_map_update_elem(&flows_000, flow, &fresh, BPF_NOEXIST);
		traffic = bpf_map_lookup_elem(&flows_000, flow);
	}
	if (traffic)
		add(traffic, bytes);
}

SEC("cgroup_skb/egress")
int count_flows(struct __sk_buff *skb)
{
	struct network network = { .bits = 128 };
	struct flow flow = {};
	struct traffic *traffic;
	__u32 protocol;

	if (read_flow(skb, &flow))
		return 1;
	add_to_flow(&flow, skb->len);
	__builtin_memcpy(network.address, flow.to, 16);
	traffic = bpf_map_lookup_elem(&networks_000, &network);
	if (traffic)
		add(traffic, skb->len);
	protocol = flow.protocol;
	traffic = bpf_map_lookup_elem(&protocols_000, &protocol);
	if (traffic)
		add(traffic, skb->len);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
