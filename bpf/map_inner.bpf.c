// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Which inner maps every map-in-map of the machine takes: the kernel keeps the definition that an
 * outer map was created with, and tells it by no other way. For each outer map one struct record
 * goes to the reader; bpfkeeperd/inner.py unpacks them. Linux 5.8+.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct record {
	__u32 outer_id;
	__u32 type;
	__u32 key_size;
	__u32 value_size;
	__u32 flags;
	__u32 max_entries;
};

/* The kernel's own structs, cut down to what is read here and relocated at load. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_map {
	struct bpf_map *inner_map_meta;
	enum bpf_map_type map_type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
	__u32 id;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
};

#pragma clang attribute pop

SEC("iter/bpf_map")
int describe_inner(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map, *inner;
	struct record record;

	if (!map) /* the call after the last map */
		return 0;
	/* Plain reads, which a kernel that is locked down allows, too. */
	inner = map->inner_map_meta;
	if (!inner)
		return 0;
	record = (struct record){
		.outer_id = map->id,
		.type = inner->map_type,
		.key_size = inner->key_size,
		.value_size = inner->value_size,
		.flags = inner->map_flags,
		.max_entries = inner->max_entries,
	};
	/* What finds the buffer full is called for again on the next read. */
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/* bpf_seq_write() is for programs that may be under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
