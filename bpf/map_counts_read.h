/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/* How map_counts.bpf.c and map_counts_plain.bpf.c read the kernel's memory. */
#include "map_counts_kernel.h"

#define AT_ONCE 16 /* words read together */

/* The address has a variable of its own: what it is made of is not to be relocated. */
#define READ(type, address, field)                                                                 \
	({                                                                                         \
		struct type *object_ = (void *)(address);                                          \
		BPF_CORE_READ(object_, field);                                                     \
	})
#define FOLLOW(type, address, field) ((__u64)READ(type, address, field))

/*
 * 0 when it cannot be read: before 5.13 a kernel that is locked down takes the program and refuses
 * each read.
 */
static __always_inline __u64 address_of(struct bpf_iter__bpf_map *ctx)
{
	__u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &ctx->map);
	return address;
}

static __always_inline long read_words(__u64 address, __u64 number, __u64 *words)
{
	return bpf_probe_read_kernel(words, number * sizeof(*words), (void *)address);
}

#include "map_counts.h"
