// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Has libbpf ask the kernel what it can do, and shows what it was told: bpfkeeperd/_build/features.c
 * says how. Nothing of it is ever attached.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

int variable = 1;		/* .data: global data, and whether it can be mapped */
const volatile int constant = 1;	/* .rodata that no program uses, and that is bound to each */

SEC("socket")
int uses_variable(void *context)
{
	return variable;
}

/* The verifier takes a 2 only for the attach type of the section. */
SEC("cgroup_skb/egress")
int has_attach_type(void *context)
{
	return 2;
}
