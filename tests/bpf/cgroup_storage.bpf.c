// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* Storage of each cgroup that the program is attached to, of TYPE. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, TYPE);
	__type(key, struct bpf_cgroup_storage_key);
	__type(value, __u64);
} storage SEC(".maps");

SEC("cgroup_skb/egress")
int count(struct __sk_buff *skb)
{
	__u64 *packets = bpf_get_local_storage(&storage, 0);

	*packets += 1;
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
