// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Several iterators, each of which writes its version once for all that it goes through, and one
 * that goes through a map and writes its keys.
 *
 * VERSION	one character		ENTRIES	max_entries of the map
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct seq_file;

/* The context of every iterator begins with a pointer to this. */
struct meta {
	struct seq_file *seq;
	__u64 session, number;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, ENTRIES);
} table SEC(".maps");

#define ITERATOR(name, what)						\
SEC("iter/" what)							\
int name(struct meta **ctx)						\
{									\
	static const char version[] = VERSION;				\
									\
	if (!(*ctx)->number)						\
		bpf_seq_write((*ctx)->seq, version, 1);			\
	return 0;							\
}

ITERATOR(tasks, "task")
ITERATOR(maps, "bpf_map")
ITERATOR(programs, "bpf_prog")
ITERATOR(links, "bpf_link")

struct element {
	struct meta *meta;
	void *map;
	__u32 *key;
	__u64 *value;
};

SEC("iter/bpf_map_elem")
int elements(struct element *ctx)
{
	__u32 *key = ctx->key;
	char digit;

	if (key) {
		digit = '0' + *key;
		bpf_seq_write(ctx->meta->seq, &digit, 1);
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
