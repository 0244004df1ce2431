// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Notes how often each numbered packet is seen, at XDP or (-DTCX) at TCX ingress, and drops it.
 * VERSION, 1 or 2, makes two files of it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct frame {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
	__u32 number;
} __attribute__((packed));

/* A byte for each packet, so that one that is missed is not made up for by one seen twice. */
struct times {
	__u8 seen[PACKETS];
};

/* No pinning attribute: the manifest asks for the pin. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct times);
} times SEC(".maps");

/* How many packets each version saw: both must have had their turn. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} versions SEC(".maps");

/* Whether it was one of ours. */
static __always_inline int note(const struct frame *frame, const void *end)
{
	__u32 key = 0, version = VERSION;
	struct times *noted = bpf_map_lookup_elem(&times, &key);
	__u64 *by_version = bpf_map_lookup_elem(&versions, &version);

	if (!noted || !by_version || (const void *)(frame + 1) > end)
		return 0;
	if (frame->ethernet.h_proto != bpf_htons(ETH_P_IP) || frame->ip.protocol != IPPROTO_UDP ||
	    frame->udp.dest != bpf_htons(PORT))
		return 0;
	noted->seen[frame->number & (PACKETS - 1)]++;
	__sync_fetch_and_add(by_version, 1);
	return 1;
}

#ifdef TCX
SEC("tcx/ingress")
int see(struct __sk_buff *skb)
{
	return note((void *)(long)skb->data, (void *)(long)skb->data_end) ? TC_ACT_SHOT : TC_ACT_OK;
}
#else
SEC("xdp")
int see(struct xdp_md *ctx)
{
	return note((void *)(long)ctx->data, (void *)(long)ctx->data_end) ? XDP_DROP : XDP_PASS;
}
#endif

char LICENSE[] SEC("license") = "Dual BSD/GPL";
