// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A hub: every frame that comes in at one of its interfaces leaves by all the others.
 *
 * The interfaces are those in the DEVMAP_HASH, under any keys; needs Linux 5.13. `count_sent` is no
 * program of an interface's own: put it beside an interface in the map, and it sees every frame
 * that is about to leave there.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct sent {
	__u64 packets;
	__u64 bytes;
};

/* No pinning attributes: the manifest asks for the pins. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 32);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val); /* interface index, and a program or none */
} hub_ports SEC(".maps");

/* What left, by interface index. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32);
	__type(key, __u32);
	__type(value, struct sent);
} hub_sent SEC(".maps");

SEC("xdp")
int to_all_others(struct xdp_md *ctx)
{
	return bpf_redirect_map(&hub_ports, 0, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS);
}

SEC("xdp/devmap")
int count_sent(struct xdp_md *ctx)
{
	__u32 port = ctx->egress_ifindex;
	struct sent none = {}, *sent = bpf_map_lookup_elem(&hub_sent, &port);

	if (!sent) {
		bpf_map_update_elem(&hub_sent, &port, &none, BPF_NOEXIST);
		sent = bpf_map_lookup_elem(&hub_sent, &port);
	}
	if (sent) {
		__sync_fetch_and_add(&sent->packets, 1);
		__sync_fetch_and_add(&sent->bytes, ctx->data_end - ctx->data);
	}
	return XDP_PASS; /* let it leave */
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
