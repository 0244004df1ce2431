// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * How full every map of the machine is, in one read of an iterator.
 *
 * For each map one struct record goes to the reader; bpfkeeperd/counting.py unpacks them. Most
 * counts are a field of the map; those of pointer arrays, bloom filters and local storages are
 * made by looking at every slot or element, at most SCAN_MAX of them: a larger map is not counted,
 * because a scrape must not wait for it (a million take 2 ms, of storages 40 ms). Exactly one of the
 * programs is loaded, this one, or one of map_counts_plain.bpf.c, or where the kernel is locked down
 * of map_counts_lockdown.bpf.c:
 *
 *   count_maps                 Linux 6.6+, the hash family through bpf_map_sum_elem_count()
 */
#include "map_counts_read.h"

SEC("iter/bpf_map")
int count_maps(struct bpf_iter__bpf_map *ctx)
{
	return count_map(ctx, KFUNC);
}

/* bpf_seq_write() and bpf_probe_read_kernel() are for programs that may be under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
