// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * What an interface receives: packets and bytes for each IP protocol, and every packet goes on.
 *
 * The index is the protocol number: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6. For IPv6 it is the header
 * that follows the fixed one, so a packet with extension headers counts as the first of these.
 * 255, which IANA reserves, is all that is not IP or is cut short: ARP, VLAN-tagged frames. Bytes
 * are those of the whole frame.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define NOT_IP 255

struct traffic {
	__u64 packets;
	__u64 bytes;
};

/* No pinning attribute: the manifest asks for the pin. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct traffic);
} protocols SEC(".maps");

static __always_inline __u32 protocol_of(void *frame, void *end)
{
	struct ethhdr *ethernet = frame;
	struct iphdr *ipv4 = (void *)(ethernet + 1);
	struct ipv6hdr *ipv6 = (void *)(ethernet + 1);

	if ((void *)(ethernet + 1) > end)
		return NOT_IP;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP) && (void *)(ipv4 + 1) <= end)
		return ipv4->protocol;
	if (ethernet->h_proto == bpf_htons(ETH_P_IPV6) && (void *)(ipv6 + 1) <= end)
		return ipv6->nexthdr;
	return NOT_IP;
}

SEC("xdp")
int count_protocols(struct xdp_md *ctx)
{
	void *frame = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 protocol = protocol_of(frame, end);
	struct traffic *traffic = bpf_map_lookup_elem(&protocols, &protocol);

	if (!traffic) /* never: every value of a byte has its slot, but the verifier wants it */
		return XDP_PASS;
	__sync_fetch_and_add(&traffic->packets, 1);
	__sync_fetch_and_add(&traffic->bytes, end - frame);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
