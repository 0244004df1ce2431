// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* Notes the kernel's own stack each time it is run, in a map of stack traces. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(key_size, 4);
	__uint(value_size, 127 * 8);
	__uint(max_entries, 64);
} stacks SEC(".maps");

SEC("raw_tp/sys_enter")
int note(void *ctx)
{
	return bpf_get_stackid(ctx, &stacks, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
