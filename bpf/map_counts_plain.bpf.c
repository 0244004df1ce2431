// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * As map_counts.bpf.c, without the kfunc: libbpf looks for one that the kernel lacks in the BTF of
 * modules, also when no program to be loaded calls it, and that takes CAP_SYS_ADMIN.
 *
 *   count_maps_without_kfunc   Linux 5.17+, what can be read from a field or scanned by bpf_loop()
 *   count_maps_by_field        Linux 5.8+, only what can be read from a field
 */
#include "map_counts_read.h"

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
