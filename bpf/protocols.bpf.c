// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * What passes: packets and bytes for each IP protocol, and every packet goes on.
 *
 * Two programs that count into one array, for two places. count_protocols is for XDP and sees what
 * an interface receives. filter_protocols is a socket filter: the owner of a packet socket attaches
 * it (SO_ATTACH_BPF), and it sees what the socket sees, without handing a single packet up to it.
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

static __always_inline void count(__u32 protocol, __u64 bytes)
{
	struct traffic *traffic = bpf_map_lookup_elem(&protocols, &protocol);

	if (!traffic) /* never: every value of a byte has its slot, but the verifier wants it */
		return;
	__sync_fetch_and_add(&traffic->packets, 1);
	__sync_fetch_and_add(&traffic->bytes, bytes);
}

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

	count(protocol_of(frame, end), end - frame);
	return XDP_PASS;
}

SEC("socket")
int filter_protocols(struct __sk_buff *skb)
{
	__u8 protocol = NOT_IP;

	/* What fails leaves NOT_IP: a header that is cut short. */
	if (skb->protocol == bpf_htons(ETH_P_IP))
		bpf_skb_load_bytes_relative(skb, offsetof(struct iphdr, protocol), &protocol, 1,
					    BPF_HDR_START_NET);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		bpf_skb_load_bytes_relative(skb, offsetof(struct ipv6hdr, nexthdr), &protocol, 1,
					    BPF_HDR_START_NET);
	count(protocol, skb->len);
	return 0; /* bytes of the packet that go up to the socket: none */
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
