// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A wire between two interfaces, without the network stack: every frame that comes in at one leaves
 * by the other, as it is.
 *
 * Which interfaces these are says the DEVMAP, by slots 0 and 1: attach `from_port_0` to the
 * interface in slot 0 and `from_port_1` to the one in slot 1. While the other slot is empty, frames
 * go to the stack as if nothing was attached.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct forwarded {
	__u64 packets;
	__u64 bytes;
};

/* No pinning attributes: the manifest asks for the pins. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32); /* interface index */
} wire_ports SEC(".maps");

/* What came in at each port and was handed to the other one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct forwarded);
} forwarded SEC(".maps");

static __always_inline int forward(struct xdp_md *ctx, __u32 from)
{
	struct forwarded *count = bpf_map_lookup_elem(&forwarded, &from);
	/* The flags are what is answered when the slot is empty. */
	long action = bpf_redirect_map(&wire_ports, !from, XDP_PASS);

	if (count && action == XDP_REDIRECT) {
		__sync_fetch_and_add(&count->packets, 1);
		__sync_fetch_and_add(&count->bytes, ctx->data_end - ctx->data);
	}
	return action;
}

SEC("xdp")
int from_port_0(struct xdp_md *ctx)
{
	return forward(ctx, 0);
}

SEC("xdp")
int from_port_1(struct xdp_md *ctx)
{
	return forward(ctx, 1);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
