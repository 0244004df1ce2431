// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Which cgroups stand in the slots of every CGROUP_ARRAY of the machine: bpf(2) does not tell. For
 * each slot that is not empty one struct record goes to the reader; bpfkeeperd/cgroupslots.py
 * unpacks them. Linux 5.17+, for bpf_loop(): of a loop of this length the verifier looks at every
 * turn, which takes 150 ms instead of 1.
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

struct walk {
	struct seq_file *seq;
	__u64 slots; /* address of the first */
	struct record record;
};

static int list_slot(__u32 slot, struct walk *walk)
{
	struct cgroup *cgroup = NULL;

	bpf_probe_read_kernel(&cgroup, sizeof(cgroup),
			      (void *)(walk->slots + slot * sizeof(cgroup)));
	if (!cgroup)
		return 0;
	walk->record.slot = slot;
	walk->record.cgroup_id = BPF_CORE_READ(cgroup, kn, id);
	/* What finds the buffer full is called for again on the next read. */
	bpf_seq_write(walk->seq, &walk->record, sizeof(walk->record));
	return 0;
}

SEC("iter/bpf_map")
int list_cgroups(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;
	struct walk walk = {};
	__u32 slots;

	if (!map || map->map_type != BPF_MAP_TYPE_CGROUP_ARRAY)
		return 0;
	/* The array is the end of the map's own struct, whose address is read as a number. */
	bpf_probe_read_kernel(&walk.slots, sizeof(walk.slots), &ctx->map);
	walk.slots += bpf_core_field_offset(((struct bpf_array *)0)->ptrs);
	walk.seq = ctx->meta->seq;
	walk.record.map_id = map->id;
	slots = map->max_entries;
	bpf_loop(slots < SLOTS_MAX ? slots : SLOTS_MAX, list_slot, &walk, 0);
	return 0;
}

/* bpf_seq_write() and bpf_probe_read_kernel() are for programs that may be under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
