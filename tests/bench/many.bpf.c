// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* Programs that are attached in many places at once. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} many SEC(".maps");

static int count(int verdict)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&many, &zero);

	if (value)
		*value += VERSION;
	return verdict;
}

SEC("cgroup_skb/egress")
int egress(struct __sk_buff *skb)
{
	return count(1);
}

SEC("tcx/ingress")
int ingress(struct __sk_buff *skb)
{
	return count(-1);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
