// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * How far the kernel has come in giving out map IDs, without asking it for one.
 *
 * IDs come from map_idr, by idr_alloc_cyclic(): idr_next is the one after the last that was given out.
 * The variable is static, but kernels with CONFIG_KALLSYMS_ALL name it in /proc/kallsyms, where libbpf
 * finds it at load; hence an object of its own, for that takes a while. The number goes to the reader
 * for each map, but it stops at the first: bpfkeeperd/mapids.py. Exactly one program is loaded:
 *
 *   tell_next_id               Linux 5.8+
 *   tell_next_id_in_lockdown   Linux 6.2+, without bpf_probe_read_kernel()
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* The kernel's own structs, cut down to what is read here and relocated at load. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct idr {
	unsigned int idr_next;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_map {
	struct bpf_iter_meta *meta;
};

#pragma clang attribute pop

extern const void map_idr __ksym __weak;
extern void *bpf_rdonly_cast(const void *object, __u32 type_id) __ksym __weak;

/* Says nothing where the kernel does not name the variable. */
static __always_inline int tell(struct bpf_iter__bpf_map *ctx, __u32 next_id)
{
	return bpf_seq_write(ctx->meta->seq, &next_id, sizeof(next_id)), 0;
}

SEC("iter/bpf_map")
int tell_next_id(struct bpf_iter__bpf_map *ctx)
{
	const struct idr *idr = &map_idr;

	if (!idr || !bpf_core_field_exists(idr->idr_next))
		return 0;
	return tell(ctx, BPF_CORE_READ(idr, idr_next));
}

SEC("iter/bpf_map")
int tell_next_id_in_lockdown(struct bpf_iter__bpf_map *ctx)
{
	const struct idr *idr = &map_idr;

	if (!idr || !bpf_core_field_exists(idr->idr_next))
		return 0;
	idr = bpf_rdonly_cast(idr, bpf_core_type_id_kernel(struct idr));
	return tell(ctx, idr->idr_next);
}

/* bpf_seq_write() and bpf_probe_read_kernel() are for programs that may be under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
