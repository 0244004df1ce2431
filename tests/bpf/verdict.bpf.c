// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* The smallest program for any hook: says VERDICT at HOOK. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef VERDICT
#define VERDICT 1
#endif

SEC(HOOK)
int program(void *ctx)
{
	return VERDICT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
