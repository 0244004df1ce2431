// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Which cgroups stand in the slots of every CGROUP_ARRAY of the machine: bpf(2) does not tell. For
 * each slot that is not empty one struct record goes to the reader; bpfkeeperd/cgroupslots.py
 * unpacks them. Linux 5.8+.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* As many as the iterator's buffer of eight pages holds for one map. */
#define SLOTS_MAX 1024

struct record {
	__u32 map_id;
	__u32 slot;
	__u64 cgroup_id;
};

/* The kernel's own structs, cut down to what is read here and relocated at load. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_map {
	enum bpf_map_type map_type;
	__u32 max_entries;
	__u32 id;
};

struct bpf_array {
	void *ptrs[0];
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
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
int list_cgroups(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;
	struct record record = {};
	struct cgroup *cgroup;
	__u64 slots = 0;
	__u32 slot;

	if (!map || map->map_type != BPF_MAP_TYPE_CGROUP_ARRAY)
		return 0;
	/* The array is the end of the map's own struct, whose address is read as a number. */
	bpf_probe_read_kernel(&slots, sizeof(slots), &ctx->map);
	slots += bpf_core_field_offset(((struct bpf_array *)0)->ptrs);
	record.map_id = map->id;
	for (slot = 0; slot < SLOTS_MAX; slot++) {
		if (slot >= map->max_entries)
			break;
		cgroup = NULL;
		bpf_probe_read_kernel(&cgroup, sizeof(cgroup),
				      (void *)(slots + slot * sizeof(cgroup)));
		if (!cgroup)
			continue;
		record.slot = slot;
		record.cgroup_id = BPF_CORE_READ(cgroup, kn, id);
		/* What finds the buffer full is called for again on the next read. */
		bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	}
	return 0;
}

/* bpf_seq_write() and bpf_probe_read_kernel() are for programs that may be under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
