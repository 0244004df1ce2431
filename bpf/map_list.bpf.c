// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Which maps the machine has, whoever made them: for each map one struct record goes to the reader;
 * bpfkeeperd/othermaps.py unpacks them. Needs neither CAP_SYS_ADMIN nor a descriptor of each map.
 * Linux 5.8+.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define NAME_SIZE 16

struct record {
	__u32 id;
	__u32 type;
	__u32 max_entries;
	char name[NAME_SIZE];
};

/* The kernel's own structs, cut down to what is read here and relocated at load. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_map {
	enum bpf_map_type map_type;
	__u32 max_entries;
	__u32 id;
	char name[NAME_SIZE];
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
int list_maps(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;
	struct record record;

	if (!map) /* the call after the last map */
		return 0;
	record = (struct record){
		.id = map->id,
		.type = map->map_type,
		.max_entries = map->max_entries,
	};
	for (int i = 0; i < NAME_SIZE; i++)
		record.name[i] = map->name[i];
	/* What finds the buffer full is called for again on the next read. */
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/* bpf_seq_write() is for programs that may be under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
