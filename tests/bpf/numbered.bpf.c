// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Notes how often each numbered event is seen, of which there are at most EVENTS, a power of two.
 *
 * AT_XDP, AT_TC, AT_CGROUP, AT_NETFILTER, AT_DISSECTOR	packets of tests/bench/sender.c to PORT
 * AT_CONNECT, AT_SOCKOPS, AT_LOOKUP	connections of tests/kernel/connector.c
 * VERSION	1 or 2: two versions of the object
 * TIMES, VERSIONS	names of its maps
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ALWAYS static __always_inline __attribute__((unused))

struct datagram {
	struct iphdr ip;
	struct udphdr udp;
	__u32 number;
} __attribute__((packed));

/* A byte for each, so that one that is missed is not made up for by one seen twice. */
struct times {
	__u8 seen[EVENTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct times);
} TIMES SEC(".maps");

/* How many each version saw: both must have had their turn. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} VERSIONS SEC(".maps");

ALWAYS void note(__u32 number)
{
	__u32 key = 0, version = VERSION;
	struct times *noted = bpf_map_lookup_elem(&TIMES, &key);
	__u64 *by_version = bpf_map_lookup_elem(&VERSIONS, &version);

	if (!noted || !by_version)
		return;
	noted->seen[number & (EVENTS - 1)]++;
	__sync_fetch_and_add(by_version, 1);
}

ALWAYS void note_datagram(const struct datagram *data)
{
	if (data->ip.protocol == IPPROTO_UDP && data->udp.dest == bpf_htons(PORT))
		note(data->number);
}

ALWAYS void note_packet(void *start, const void *end, __u32 offset)
{
	struct datagram *data = start + offset;

	if ((const void *)(data + 1) <= end)
		note_datagram(data);
}

/* The last 24 bits of an address are the number of a connection. */
ALWAYS void note_address(__u32 port, __u32 address)
{
	if (port == PORT)
		note(bpf_ntohl(address) & 0xffffff);
}

#define DATA(ctx) ((void *)(long)(ctx)->data)
#define END(ctx) ((void *)(long)(ctx)->data_end)

#if defined(AT_XDP)
SEC("xdp")
int see(struct xdp_md *ctx)
{
	note_packet(DATA(ctx), END(ctx), sizeof(struct ethhdr));
	return XDP_PASS;
}
#elif defined(AT_TC)
SEC("tcx/ingress")
int see(struct __sk_buff *skb)
{
	note_packet(DATA(skb), END(skb), sizeof(struct ethhdr));
	return -1;	/* the next one may have it */
}
#elif defined(AT_CGROUP)
SEC("cgroup_skb/egress")
int see(struct __sk_buff *skb)
{
	note_packet(DATA(skb), END(skb), 0);
	return 1;
}
#elif defined(AT_NETFILTER)
struct nf_hook_state;
struct sk_buff;

struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
} __attribute__((preserve_access_index));

extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym;
extern void *bpf_dynptr_slice(const struct bpf_dynptr *ptr, __u32 offset, void *buffer,
			      __u32 size) __ksym;

SEC("netfilter")
int see(struct bpf_nf_ctx *ctx)
{
	struct bpf_dynptr packet;
	struct datagram buffer, *data;

	if (bpf_dynptr_from_skb((struct __sk_buff *)ctx->skb, 0, &packet))
		return 1;
	data = bpf_dynptr_slice(&packet, 0, &buffer, sizeof(buffer));
	if (data)
		note_datagram(data);
	return 1;	/* the other one, if there is one for a moment, sees it as well */
}
#elif defined(AT_DISSECTOR)
SEC("flow_dissector")
int see(struct __sk_buff *skb)
{
	note_packet(DATA(skb), END(skb), skb->flow_keys->nhoff & 0xff);
	return BPF_OK;
}
#elif defined(AT_CONNECT)
SEC("cgroup/connect4")
int see(struct bpf_sock_addr *ctx)
{
	note_address(bpf_ntohs(ctx->user_port), ctx->user_ip4);
	return 1;
}
#elif defined(AT_SOCKOPS)
SEC("sockops")
int see(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		note_address(bpf_ntohl(ctx->remote_port), ctx->remote_ip4);
	return 1;
}
#elif defined(AT_LOOKUP)
SEC("sk_lookup")
int see(struct bpf_sk_lookup *ctx)
{
	note_address(ctx->local_port, ctx->local_ip4);
	return SK_PASS;
}
#endif

char LICENSE[] SEC("license") = "Dual BSD/GPL";
