// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * How full every map of the machine is, in one read of an iterator.
 *
 * For each map one struct record goes to the reader; bpfkeeperd/counting.py unpacks them. Most
 * counts are a field of the map; those of pointer arrays, bloom filters and local storages are
 * made by looking at every slot or element, at most SCAN_MAX of them: a larger map is not counted,
 * because a scrape must not wait for it (a million take 2 ms, of storages 40 ms). Exactly one of the
 * three programs is loaded:
 *
 *   count_maps                 Linux 6.6+, the hash family through bpf_map_sum_elem_count()
 *   count_maps_without_kfunc   Linux 5.17+, what can be read from a field or scanned by bpf_loop()
 *   count_maps_by_field        Linux 5.8+, only what can be read from a field
 *
 * They are programs of their own and not branches of one because a call of a kfunc or helper that
 * the kernel does not have is refused wherever the verifier can reach it.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* Of Linux 6.2: the headers may be older. */
#define CGRP_STORAGE 32

#define NOT_COUNTED (-1)

struct record {
	__u32 id;
	__u32 type;
	__s64 count; /* entries, bytes for ring buffers, set bits for bloom filters; NOT_COUNTED */
	__u32 bit_mask; /* bloom filters: bits - 1, which fits where 2^32 would not */
	__u32 hashes; /* bloom filters: bits that each entry sets; else 0 */
};

#define SCAN_MAX (1 << 20) /* slots, words of a bloom filter, steps through a storage */
#define AT_ONCE 16 /* slots or words read together */

/*
 * The kernel's own structs, cut down to what is read here and relocated at load. The field types
 * are the kernel's: map_type must be an enum for its relocation to match, and struct bpf_map must
 * have a field, for a forward declaration would not match the prototype of the kfunc.
 */
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

struct bpf_local_storage_map_bucket {
	struct hlist_head list;
};

struct bpf_local_storage_map {
	struct bpf_local_storage_map_bucket *buckets;
	__u32 bucket_log;
};

#pragma clang attribute pop

/* Weak: the object must open on kernels without it, where count_maps is not loaded. */
extern __s64 bpf_map_sum_elem_count(const struct bpf_map *map) __ksym __weak;

/*
 * The counts below are read while others change them. The sum of per-CPU counters can pass through
 * values below zero, which must not be taken for NOT_COUNTED; and some maps count an entry before
 * they refuse it.
 */
static __always_inline __s64 at_least_zero(__s64 count)
{
	return count < 0 ? 0 : count;
}

static __always_inline __s64 within(__s64 count, __s64 most)
{
	return count > most ? most : count;
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

static __always_inline __s64 devmap_hash_entries(struct bpf_map *map)
{
	struct bpf_dtab *table = (void *)map;

	if (!bpf_core_field_exists(table->items))
		return NOT_COUNTED;
	return BPF_CORE_READ(table, items);
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
	return within(at_least_zero(bytes), size);
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
		return within(sockhash_entries(map), map->max_entries);
	case BPF_MAP_TYPE_DEVMAP_HASH:
		return within(devmap_hash_entries(map), map->max_entries);
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

/* ---- words in a row: pointers that are set, bits that are set ---- */

struct words {
	__u64 address;
	__u32 number;
	__u32 found;
	_Bool unread;
};

/* One step of bpf_loop(): AT_ONCE words, the last time as many as there are. */
static __always_inline long read_words(__u32 step, struct words *words, __u64 *into)
{
	__u64 first = (__u64)step * AT_ONCE, number = words->number - first;

	if (number > AT_ONCE)
		number = AT_ONCE;
	if (bpf_probe_read_kernel(into, number * sizeof(*into), (__u64 *)words->address + first))
		words->unread = 1;
	return words->unread;
}

static long count_pointers(__u32 step, struct words *words)
{
	__u64 read[AT_ONCE] = {};

	if (read_words(step, words, read))
		return 1;
#pragma unroll
	for (int i = 0; i < AT_ONCE; i++)
		words->found += read[i] != 0;
	return 0;
}

static __always_inline __u32 bits_in(__u64 word)
{
	word -= (word >> 1) & 0x5555555555555555;
	word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333);
	word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f;
	return (word * 0x0101010101010101) >> 56;
}

static long count_bits(__u32 step, struct words *words)
{
	__u64 read[AT_ONCE] = {};

	if (read_words(step, words, read))
		return 1;
#pragma unroll
	for (int i = 0; i < AT_ONCE; i++)
		words->found += bits_in(read[i]);
	return 0;
}

/* Where a map is, as a number: the verifier lets no pointer to one be moved by a variable. */
static __always_inline __u64 address_of(struct bpf_iter__bpf_map *ctx)
{
	__u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &ctx->map);
	return address;
}

/*
 * The slots of a type's array, which is the end of the map's own struct (INLINE_SLOTS) or stands
 * elsewhere (SLOTS_AT); 0 where this kernel has no such field.
 */
#define INLINE_SLOTS(ctx, type, field)                                                             \
	(bpf_core_field_exists(((struct type *)0)->field) ?                                        \
		 address_of(ctx) + bpf_core_field_offset(((struct type *)0)->field) :              \
		 0)
#define SLOTS_AT(map, type, field)                                                                 \
	(bpf_core_field_exists(((struct type *)0)->field) ?                                        \
		 (__u64)BPF_CORE_READ((struct type *)(map), field) :                               \
		 0)

static __always_inline __u64 slots_of(struct bpf_iter__bpf_map *ctx, struct bpf_map *map)
{
	switch (map->map_type) {
	case BPF_MAP_TYPE_PROG_ARRAY:
	case BPF_MAP_TYPE_PERF_EVENT_ARRAY:
	case BPF_MAP_TYPE_CGROUP_ARRAY:
	case BPF_MAP_TYPE_ARRAY_OF_MAPS:
		return INLINE_SLOTS(ctx, bpf_array, ptrs);
	case BPF_MAP_TYPE_XSKMAP:
		return INLINE_SLOTS(ctx, xsk_map, xsk_map);
	case BPF_MAP_TYPE_REUSEPORT_SOCKARRAY:
		return INLINE_SLOTS(ctx, reuseport_array, ptrs);
	case BPF_MAP_TYPE_DEVMAP:
		return SLOTS_AT(map, bpf_dtab, netdev_map);
	case BPF_MAP_TYPE_CPUMAP:
		return SLOTS_AT(map, bpf_cpu_map, cpu_map);
	case BPF_MAP_TYPE_SOCKMAP:
		return SLOTS_AT(map, bpf_stab, sks);
	default:
		return 0;
	}
}

static __always_inline __s64 used_slots(__u64 slots, __u32 number)
{
	struct words words = { .address = slots, .number = number };

	if (!slots || number > SCAN_MAX)
		return NOT_COUNTED;
	bpf_loop((number + AT_ONCE - 1) / AT_ONCE, count_pointers, &words, 0);
	return words.unread ? NOT_COUNTED : words.found;
}

static __always_inline void count_bloom_filter(struct bpf_iter__bpf_map *ctx, struct bpf_map *map,
					       struct record *record)
{
	struct bpf_bloom_filter *filter = (void *)map;
	struct words words = {};

	if (!bpf_core_field_exists(filter->bitset_mask) ||
	    !bpf_core_field_exists(filter->nr_hash_funcs) ||
	    !bpf_core_field_exists(filter->bitset))
		return;
	record->bit_mask = BPF_CORE_READ(filter, bitset_mask);
	record->hashes = BPF_CORE_READ(filter, nr_hash_funcs);
	words.number = record->bit_mask / 64 + 1;
	words.address = INLINE_SLOTS(ctx, bpf_bloom_filter, bitset);
	if (words.number > SCAN_MAX)
		return;
	bpf_loop((words.number + AT_ONCE - 1) / AT_ONCE, count_bits, &words, 0);
	if (!words.unread)
		record->count = words.found;
}

/* ---- local storages: a few buckets, each a list of elements ---- */

struct walk {
	__u64 bucket, buckets_end;
	struct hlist_node *node;
	__u32 found;
	_Bool done;
};

/*
 * One step of bpf_loop(): from an element to the next, or into the next bucket. One loop for both,
 * so that one bound holds for both. The kernel frees an element only after a grace period of RCU,
 * which this program is a reader of; it may use one again at once, in the same map, so a count under
 * changes can be off by those that moved.
 */
static long walk_storage(__u32 step, struct walk *walk)
{
	struct bpf_local_storage_map_bucket *bucket;
	struct hlist_node *node = walk->node;

	if (node) {
		walk->found++;
		walk->node = BPF_CORE_READ(node, next);
		return 0;
	}
	if (walk->bucket >= walk->buckets_end) {
		walk->done = 1;
		return 1;
	}
	bucket = (void *)walk->bucket;
	walk->node = BPF_CORE_READ(bucket, list.first);
	walk->bucket += bpf_core_type_size(struct bpf_local_storage_map_bucket);
	return 0;
}

static __always_inline __s64 storage_entries(struct bpf_map *map)
{
	struct bpf_local_storage_map *storage = (void *)map;
	struct walk walk = {};
	__u64 size;

	if (!bpf_core_field_exists(storage->buckets) ||
	    !bpf_core_field_exists(storage->bucket_log) ||
	    !bpf_core_field_exists(((struct bpf_local_storage_map_bucket *)0)->list))
		return NOT_COUNTED;
	size = bpf_core_type_size(struct bpf_local_storage_map_bucket);
	walk.bucket = (__u64)BPF_CORE_READ(storage, buckets);
	walk.buckets_end = walk.bucket + (size << (BPF_CORE_READ(storage, bucket_log) & 31));
	bpf_loop(SCAN_MAX, walk_storage, &walk, 0);
	return walk.done ? walk.found : NOT_COUNTED;
}

/* ---- the programs ---- */

static __always_inline int write_record(struct bpf_iter__bpf_map *ctx, struct record *record)
{
	/* A record that finds the buffer full is dropped, and the kernel calls for that map again
	 * on the next read: nothing to do about the error here. */
	bpf_seq_write(ctx->meta->seq, record, sizeof(*record));
	return 0;
}

static __always_inline void count_by_scan(struct bpf_iter__bpf_map *ctx, struct bpf_map *map,
					  struct record *record)
{
	switch ((__u32)map->map_type) {
	case BPF_MAP_TYPE_SK_STORAGE:
	case BPF_MAP_TYPE_INODE_STORAGE:
	case BPF_MAP_TYPE_TASK_STORAGE:
	case CGRP_STORAGE:
		record->count = storage_entries(map);
		break;
	case BPF_MAP_TYPE_BLOOM_FILTER:
		count_bloom_filter(ctx, map, record);
		break;
	default:
		record->count = used_slots(slots_of(ctx, map), map->max_entries);
	}
}

#define RECORD_OF(map) { .id = (map)->id, .type = (map)->map_type, .count = NOT_COUNTED }

SEC("iter/bpf_map")
int count_maps(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;

	if (!map) /* the call after the last map */
		return 0;

	struct record record = RECORD_OF(map);

	switch (map->map_type) {
	case BPF_MAP_TYPE_HASH:
	case BPF_MAP_TYPE_PERCPU_HASH:
	case BPF_MAP_TYPE_LRU_HASH:
	case BPF_MAP_TYPE_LRU_PERCPU_HASH:
	case BPF_MAP_TYPE_HASH_OF_MAPS:
		record.count = within(at_least_zero(bpf_map_sum_elem_count(map)), map->max_entries);
		break;
	default:
		record.count = count_by_field(map);
		if (record.count == NOT_COUNTED)
			count_by_scan(ctx, map, &record);
	}
	return write_record(ctx, &record);
}

SEC("iter/bpf_map")
int count_maps_without_kfunc(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;

	if (!map)
		return 0;

	struct record record = RECORD_OF(map);

	record.count = count_by_field(map);
	if (record.count == NOT_COUNTED)
		count_by_scan(ctx, map, &record);
	return write_record(ctx, &record);
}

SEC("iter/bpf_map")
int count_maps_by_field(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;

	if (!map)
		return 0;

	struct record record = RECORD_OF(map);

	record.count = count_by_field(map);
	return write_record(ctx, &record);
}

/* bpf_seq_write() and bpf_probe_read_kernel() are for programs that may be under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
