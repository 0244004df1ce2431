// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* Programs that maps hold, and maps whose entries a manifest writes. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <linux/in6.h>
#include <stdbool.h>

struct flow {
	__u8 protocol;
	__be16 port;
	union {
		__be32 v4;
		struct in6_addr v6;
	};
	char label[6];
	__u32 low : 3;
	__u32 high : 13;
	struct {
		__s16 x, y;
	} corner[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, struct flow);
	__type(value, __s64);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, bool);
} switches SEC(".maps");

SEC("xdp")
int first(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int second(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("xdp/devmap")
int at_port(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp/cpumap")
int at_cpu(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
