// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * How full every map of the machine is, in one read of an iterator and without walking entries.
 *
 * For each map one struct record goes to the reader; bpfkeeperd/counting.py unpacks them. Exactly
 * one of the two programs is loaded:
 *
 *   count_maps                 Linux 6.6+, knows the hash family through bpf_map_sum_elem_count()
 *   count_maps_without_kfunc   Linux 5.8+, only what can be read from a field
 *
 * They are two programs and not one with a branch because a call of a kfunc that the kernel does
 * not have is refused wherever the verifier can reach it.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define NOT_COUNTED (-1)

struct record {
	__u32 id;
	__u32 type;
	__s64 count; /* entries, or bytes for ring buffers; NOT_COUNTED */
};

/*
 * The kernel's own structs, cut down to what is read here and relocated at load. The field types
 * are the kernel's: map_type must be an enum for its relocation to match, and struct bpf_map must
 * have a field, for a forward declaration would not match the prototype of the kfunc.
 */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_map {
	enum bpf_map_type map_type;
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

struct bpf_queue_stack {
	__u32 head;
	__u32 tail;
	__u32 size; /* max_entries + 1: one slot is always free */
};

struct bpf_ringbuf {
	__u64 mask;
	unsigned long consumer_pos;
	unsigned long producer_pos;
};

struct bpf_ringbuf_map {
	struct bpf_ringbuf *rb;
};

#pragma clang attribute pop

/* Weak: the object must open on kernels without it, where count_maps is not loaded. */
extern __s64 bpf_map_sum_elem_count(const struct bpf_map *map) __ksym __weak;

/*
 * The counts below are read while others change them, and the sum of per-CPU counters can pass
 * through values below zero: that must not be taken for NOT_COUNTED.
 */
static __always_inline __s64 at_least_zero(__s64 count)
{
	return count < 0 ? 0 : count;
}

static __always_inline __s64 trie_entries(struct bpf_map *map)
{
	struct lpm_trie *trie = (void *)map;

	if (!bpf_core_field_exists(trie->n_entries))
		return NOT_COUNTED;
	return at_least_zero(BPF_CORE_READ(trie, n_entries));
}

static __always_inline __s64 sockhash_entries(struct bpf_map *map)
{
	struct bpf_shtab *table = (void *)map;

	if (!bpf_core_field_exists(table->count.counter))
		return NOT_COUNTED;
	return at_least_zero(BPF_CORE_READ(table, count.counter));
}

static __always_inline __s64 queue_entries(struct bpf_map *map)
{
	struct bpf_queue_stack *queue = (void *)map;
	__u32 head, tail;

	if (!bpf_core_field_exists(queue->head) || !bpf_core_field_exists(queue->tail) ||
	    !bpf_core_field_exists(queue->size))
		return NOT_COUNTED;
	head = BPF_CORE_READ(queue, head);
	tail = BPF_CORE_READ(queue, tail);
	if (head >= tail)
		return head - tail;
	return at_least_zero((__s64)head - tail + BPF_CORE_READ(queue, size));
}

static __always_inline __s64 unread_bytes(struct bpf_ringbuf *ringbuf)
{
	__s64 bytes, size;

	if (!bpf_core_field_exists(ringbuf->mask) ||
	    !bpf_core_field_exists(ringbuf->consumer_pos) ||
	    !bpf_core_field_exists(ringbuf->producer_pos))
		return NOT_COUNTED;
	bytes = BPF_CORE_READ(ringbuf, producer_pos) - BPF_CORE_READ(ringbuf, consumer_pos);
	size = BPF_CORE_READ(ringbuf, mask) + 1;
	/* One of the positions is in a page that user space writes: it can hold anything. */
	return bytes > size ? size : at_least_zero(bytes);
}

static __always_inline __s64 ringbuf_bytes(struct bpf_map *map)
{
	struct bpf_ringbuf_map *ringbuf_map = (void *)map;

	if (!bpf_core_field_exists(ringbuf_map->rb))
		return NOT_COUNTED;
	return unread_bytes(BPF_CORE_READ(ringbuf_map, rb));
}

/* What a field of the map tells, for the types where one does; constant time. */
static __always_inline __s64 count_by_field(struct bpf_map *map)
{
	switch (map->map_type) {
	case BPF_MAP_TYPE_LPM_TRIE:
		return trie_entries(map);
	case BPF_MAP_TYPE_SOCKHASH:
		return sockhash_entries(map);
	case BPF_MAP_TYPE_QUEUE:
	case BPF_MAP_TYPE_STACK:
		return queue_entries(map);
	case BPF_MAP_TYPE_RINGBUF:
	case BPF_MAP_TYPE_USER_RINGBUF:
		return ringbuf_bytes(map);
	/* A further type goes here, and into maptypes.py and counting.py. */
	default:
		return NOT_COUNTED;
	}
}

static __always_inline int write_record(struct bpf_iter__bpf_map *ctx, struct bpf_map *map,
					__s64 count)
{
	struct record record = {
		.id = map->id,
		.type = map->map_type,
		.count = count,
	};

	/* A record that finds the buffer full is dropped, and the kernel calls for that map again
	 * on the next read: nothing to do about the error here. */
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

SEC("iter/bpf_map")
int count_maps(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;

	if (!map) /* the call after the last map */
		return 0;
	switch (map->map_type) {
	case BPF_MAP_TYPE_HASH:
	case BPF_MAP_TYPE_PERCPU_HASH:
	case BPF_MAP_TYPE_LRU_HASH:
	case BPF_MAP_TYPE_LRU_PERCPU_HASH:
	case BPF_MAP_TYPE_HASH_OF_MAPS:
		return write_record(ctx, map, at_least_zero(bpf_map_sum_elem_count(map)));
	default:
		return write_record(ctx, map, count_by_field(map));
	}
}

SEC("iter/bpf_map")
int count_maps_without_kfunc(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;

	if (!map)
		return 0;
	return write_record(ctx, map, count_by_field(map));
}

/* bpf_seq_write() and bpf_probe_read_kernel() are for programs that may be under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
