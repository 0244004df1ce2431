// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * As map_counts.bpf.c, for kernels that are locked down to keep their memory confidential
 * (lockdown=confidentiality): those have no bpf_probe_read_kernel(). What a pointer leads to that the
 * verifier knows the type of may be read all the same, and bpf_rdonly_cast() makes a typed pointer of
 * any number. A read where there is no memory gives 0.
 *
 *   count_maps_in_lockdown                 Linux 6.6+, the hash family through the kfunc
 *   count_maps_in_lockdown_without_kfunc   Linux 6.2+
 */
#include "map_counts_kernel.h"

extern void *bpf_rdonly_cast(const void *object, __u32 type_id) __ksym;

#define AT_ONCE 8 /* words read in a step */

#define CAST(type, address)                                                                        \
	((struct type *)bpf_rdonly_cast((void *)(address),                                         \
					bpf_core_type_id_kernel(struct type)))
#define READ(type, address, field) (CAST(type, address)->field)
/* The pointer would be one of the verifier's, which it keeps from becoming a number. */
#define FOLLOW(type, address, field)                                                               \
	word_at((__u64)(address) + bpf_core_field_offset(((struct type *)0)->field))

static __always_inline __u64 word_at(__u64 address)
{
	return READ(rb_node, address, __rb_parent_color);
}

/* The difference of two pointers is a number, and one of them may be at 0. */
static __always_inline __u64 address_of(struct bpf_iter__bpf_map *ctx)
{
	return (__u64)ctx->map - (__u64)CAST(bpf_map, 0);
}

static __always_inline long read_words(__u64 address, __u64 number, __u64 *words)
{
#pragma unroll
	for (int i = 0; i < AT_ONCE; i++)
		if (i < number)
			words[i] = word_at(address + i * sizeof(*words));
	return 0;
}

#include "map_counts.h"

SEC("iter/bpf_map")
int count_maps_in_lockdown(struct bpf_iter__bpf_map *ctx)
{
	return count_map(ctx, KFUNC);
}

SEC("iter/bpf_map")
int count_maps_in_lockdown_without_kfunc(struct bpf_iter__bpf_map *ctx)
{
	return count_map(ctx, LOOPS);
}

/* bpf_seq_write() is for programs that may be under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
