// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * How full every map of the machine is, in one read of an iterator.
 *
 * For each map one struct record goes to the reader; bpfkeeperd/counting.py unpacks them. Most
 * counts are a field of the map; those of pointer arrays, bloom filters and local storages are
 * made by looking at every slot or element, at most SCAN_MAX of them: a larger map is not counted,
 * because a scrape must not wait for it (a million take 2 ms, of storages 40 ms). Exactly one of the
 * programs is loaded, of these, or where the kernel is locked down of map_counts_lockdown.bpf.c:
 *
 *   count_maps                 Linux 6.6+, the hash family through bpf_map_sum_elem_count()
 *   count_maps_without_kfunc   Linux 5.17+, what can be read from a field or scanned by bpf_loop()
 *   count_maps_by_field        Linux 5.8+, only what can be read from a field
 */
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

SEC("iter/bpf_map")
int count_maps(struct bpf_iter__bpf_map *ctx)
{
	return count_map(ctx, KFUNC);
}

SEC("iter/bpf_map")
int count_maps_without_kfunc(struct bpf_iter__bpf_map *ctx)
{
	return count_map(ctx, LOOPS);
}

SEC("iter/bpf_map")
int count_maps_by_field(struct bpf_iter__bpf_map *ctx)
{
	return count_map(ctx, FIELDS);
}

/* bpf_seq_write() and bpf_probe_read_kernel() are for programs that may be under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
