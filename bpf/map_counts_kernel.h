/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/*
 * The kernel's own structs, cut down to what the programs that count read, and relocated at load. The
 * field types are the kernel's: map_type must be an enum for its relocation to match, and struct
 * bpf_map must have a field, for a forward declaration would not match the prototype of the kfunc.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* Of Linux 6.1 and 6.2: the headers may be older. */
#define USER_RINGBUF 31
#define CGRP_STORAGE 32

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_map {
	enum bpf_map_type map_type;
	__u32 max_entries;
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

struct lpm_trie {
	unsigned long n_entries;
};

typedef struct {
	int counter;
} atomic_t;

struct bpf_shtab {
	atomic_t count;
};

struct bpf_dtab {
	void **netdev_map; /* DEVMAP */
	unsigned int items; /* DEVMAP_HASH */
};

struct bpf_queue_stack {
	__u32 head;
	__u32 tail;
	__u32 size; /* max_entries + 1: one slot is always free */
};

struct bpf_ringbuf {
	__u64 mask;
	unsigned long consumer_pos;
	unsigned long producer_pos;
	unsigned long overwrite_pos; /* Linux 6.19+: where the oldest record is that is there yet */
	_Bool overwrite_mode;
};

struct bpf_ringbuf_map {
	struct bpf_ringbuf *rb;
};

struct bpf_array {
	void *ptrs[0];
};

struct bpf_cpu_map {
	void **cpu_map;
};

struct bpf_stab {
	void **sks;
};

struct bpf_stack_map {
	__u32 n_buckets;
	void *buckets[0];
};

struct xsk_map {
	void *xsk_map[0];
};

struct reuseport_array {
	void *ptrs[0];
};

struct bpf_bloom_filter {
	__u32 bitset_mask;
	__u32 nr_hash_funcs;
	unsigned long bitset[0];
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

/* Of this only its first word is of use: it is any eight bytes of the kernel's memory as a number. */
struct rb_node {
	unsigned long __rb_parent_color;
};

struct bpf_local_storage_map_bucket {
	struct hlist_head list;
};

struct bpf_local_storage_map {
	struct bpf_local_storage_map_bucket *buckets;
	__u32 bucket_log;
};

#pragma clang attribute pop
