// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Two programs of the same instructions, whatever their constant FIRST is, that count in global data
 * of both; with KEPT, in a map that is pinned by name instead.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u64 first_step = FIRST;

#ifdef KEPT
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} together SEC(".maps");
#else
__u64 together;
#endif

static void add(void)
{
#ifdef KEPT
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&together, &key);

	if (value)
		*value += first_step;
#else
	together += first_step;
#endif
}

SEC("cgroup_skb/egress")
int first(void *ctx)
{
	add();
	return 1;
}

SEC("cgroup_skb/egress")
int second(void *ctx)
{
	add();
	add();
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
