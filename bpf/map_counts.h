/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/*
 * How full a map is: what the programs that count share. map_counts_read.h and map_counts_lockdown.bpf.c
 * differ in how they read the kernel's memory, and define after map_counts_kernel.h and before this:
 *
 *   READ(type, address, field)    a number in a struct of the kernel
 *   FOLLOW(type, address, field)  a pointer in one, as the number it is
 *   address_of(ctx)               where the map is, as a number
 *   AT_ONCE                       how many words are read together
 *   read_words(address, number, words)  so many in a row, AT_ONCE at most; not 0 if it cannot
 *
 * Addresses are numbers because the verifier lets no pointer into a struct be moved by a variable.
 */
#define NOT_COUNTED (-(1LL << 62)) /* below all that a sum of per-CPU counters can pass through */

struct record {
	__u32 id;
	__u32 type;
	__s64 count; /* entries, bytes for ring buffers, set bits for bloom filters; or < 0 */
	__u32 bit_mask; /* bloom filters: bits - 1, which fits where 2^32 would not */
	__u32 hashes; /* bloom filters: bits that each entry sets; else 0 */
};

/* ---- what a field of the map tells, in constant time ---- */

#define HAS(type, field) bpf_core_field_exists(((struct type *)0)->field)
#define FIELD_OR_NOT_COUNTED(type, address, field)                                                 \
	(HAS(type, field) ? (__s64)READ(type, address, field) : NOT_COUNTED)

static __always_inline __s64 queue_entries(__u64 map)
{
	__u32 head, tail;

	if (!HAS(bpf_queue_stack, head) || !HAS(bpf_queue_stack, tail) ||
	    !HAS(bpf_queue_stack, size))
		return NOT_COUNTED;
	head = READ(bpf_queue_stack, map, head);
	tail = READ(bpf_queue_stack, map, tail);
	if (head >= tail)
		return head - tail;
	return (__s64)head - tail + READ(bpf_queue_stack, map, size);
}

static __always_inline __s64 unread_bytes(__u64 ringbuf)
{
	__u64 from = READ(bpf_ringbuf, ringbuf, consumer_pos), oldest;

	/* What is new takes the place of what is old: that is no longer there to be read. Read before
	 * the producer's position, from which it is never far. */
	if (HAS(bpf_ringbuf, overwrite_pos) && HAS(bpf_ringbuf, overwrite_mode)) {
		oldest = READ(bpf_ringbuf, ringbuf, overwrite_pos);
		if (READ(bpf_ringbuf, ringbuf, overwrite_mode) && oldest > from)
			from = oldest;
	}
	return READ(bpf_ringbuf, ringbuf, producer_pos) - from;
}

static __always_inline __s64 ringbuf_bytes(__u64 map)
{
	if (!HAS(bpf_ringbuf_map, rb) || !HAS(bpf_ringbuf, consumer_pos) ||
	    !HAS(bpf_ringbuf, producer_pos))
		return NOT_COUNTED;
	return unread_bytes(FOLLOW(bpf_ringbuf_map, map, rb));
}

static __always_inline __s64 count_by_field(__u64 map, __u32 type)
{
	switch (type) {
	case BPF_MAP_TYPE_LPM_TRIE:
		return FIELD_OR_NOT_COUNTED(lpm_trie, map, n_entries);
	case BPF_MAP_TYPE_SOCKHASH:
		return FIELD_OR_NOT_COUNTED(bpf_shtab, map, count.counter);
	case BPF_MAP_TYPE_DEVMAP_HASH:
		return FIELD_OR_NOT_COUNTED(bpf_dtab, map, items);
	case BPF_MAP_TYPE_QUEUE:
	case BPF_MAP_TYPE_STACK:
		return queue_entries(map);
	case BPF_MAP_TYPE_RINGBUF:
	case USER_RINGBUF:
		return ringbuf_bytes(map);
	/* A further type goes here, and into maptypes.py and counting.py. */
	default:
		return NOT_COUNTED;
	}
}

/* ---- words in a row: pointers that are set, bits that are set ---- */

#define SCAN_MAX (1 << 20) /* slots, words of a bloom filter, steps through a storage */

struct words {
	__u64 address;
	__u32 number;
	__u32 found;
	_Bool unread;
};

/* One step of bpf_loop(): AT_ONCE words, the last time as many as there are. */
static __always_inline long read_step(__u32 step, struct words *words, __u64 *into)
{
	__u64 first = (__u64)step * AT_ONCE, number = words->number - first;

	if (number > AT_ONCE)
		number = AT_ONCE;
	if (read_words(words->address + first * sizeof(*into), number, into))
		words->unread = 1;
	return words->unread;
}

static long count_pointers(__u32 step, struct words *words)
{
	__u64 read[AT_ONCE] = {};

	if (read_step(step, words, read))
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

	if (read_step(step, words, read))
		return 1;
#pragma unroll
	for (int i = 0; i < AT_ONCE; i++)
		words->found += bits_in(read[i]);
	return 0;
}

/*
 * The slots of a type's array, which is the end of the map's own struct (INLINE_SLOTS) or stands
 * elsewhere (SLOTS_AT); 0 where this kernel has no such field.
 */
#define INLINE_SLOTS(map, type, field)                                                             \
	(HAS(type, field) ? (map) + bpf_core_field_offset(((struct type *)0)->field) : 0)
#define SLOTS_AT(map, type, field) (HAS(type, field) ? FOLLOW(type, map, field) : 0)

static __always_inline __u64 slots_of(__u64 map, __u32 type)
{
	switch (type) {
	case BPF_MAP_TYPE_PROG_ARRAY:
	case BPF_MAP_TYPE_PERF_EVENT_ARRAY:
	case BPF_MAP_TYPE_CGROUP_ARRAY:
	case BPF_MAP_TYPE_ARRAY_OF_MAPS:
		return INLINE_SLOTS(map, bpf_array, ptrs);
	case BPF_MAP_TYPE_XSKMAP:
		return INLINE_SLOTS(map, xsk_map, xsk_map);
	case BPF_MAP_TYPE_REUSEPORT_SOCKARRAY:
		return INLINE_SLOTS(map, reuseport_array, ptrs);
	case BPF_MAP_TYPE_STACK_TRACE:
		return INLINE_SLOTS(map, bpf_stack_map, buckets);
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

static __always_inline __s64 used_slots(__u64 map, __u32 type, __u32 number)
{
	struct words words = { .address = slots_of(map, type), .number = number };

	/* It has the power of two that is not below max_entries. */
	if (type == BPF_MAP_TYPE_STACK_TRACE)
		words.number = HAS(bpf_stack_map, n_buckets) ?
				       READ(bpf_stack_map, map, n_buckets) :
				       SCAN_MAX + 1;
	if (!words.address || words.number > SCAN_MAX)
		return NOT_COUNTED;
	bpf_loop((words.number + AT_ONCE - 1) / AT_ONCE, count_pointers, &words, 0);
	return words.unread ? NOT_COUNTED : words.found;
}

/* The bits that are set, and into the record what is needed to make an estimate of them. */
static __always_inline __s64 set_bits(__u64 map, struct record *record)
{
	struct words words = {};

	if (!HAS(bpf_bloom_filter, bitset_mask) || !HAS(bpf_bloom_filter, nr_hash_funcs) ||
	    !HAS(bpf_bloom_filter, bitset))
		return NOT_COUNTED;
	record->bit_mask = READ(bpf_bloom_filter, map, bitset_mask);
	record->hashes = READ(bpf_bloom_filter, map, nr_hash_funcs);
	words.number = record->bit_mask / 64 + 1;
	words.address = INLINE_SLOTS(map, bpf_bloom_filter, bitset);
	if (words.number > SCAN_MAX)
		return NOT_COUNTED;
	bpf_loop((words.number + AT_ONCE - 1) / AT_ONCE, count_bits, &words, 0);
	return words.unread ? NOT_COUNTED : words.found;
}

/* ---- local storages: a few buckets, each a list of elements ---- */

struct walk {
	__u64 bucket, buckets_end;
	__u64 node;
	__u64 found; /* and the address of the map */
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
	if (walk->node) {
		walk->found++;
		walk->node = FOLLOW(hlist_node, walk->node, next);
		return 0;
	}
	if (walk->bucket >= walk->buckets_end) {
		walk->done = 1;
		return 1;
	}
	walk->node = FOLLOW(bpf_local_storage_map_bucket, walk->bucket, list.first);
	walk->bucket += bpf_core_type_size(struct bpf_local_storage_map_bucket);
	return 0;
}

static __always_inline __s64 storage_entries(__u64 map)
{
	struct walk walk = {};
	__u64 size;

	if (!HAS(bpf_local_storage_map, buckets) || !HAS(bpf_local_storage_map, bucket_log) ||
	    !HAS(bpf_local_storage_map_bucket, list.first) || !HAS(hlist_node, next))
		return NOT_COUNTED;
	size = bpf_core_type_size(struct bpf_local_storage_map_bucket);
	walk.bucket = FOLLOW(bpf_local_storage_map, map, buckets);
	walk.buckets_end =
		walk.bucket + (size << (READ(bpf_local_storage_map, map, bucket_log) & 31));
	/*
	 * Both begin with what the verifier does not know. Before ab5cfac139ab ("bpf: verify callbacks
	 * as if they are called unknown number of times") (in v6.7) it looks at one step only, and
	 * takes out of the program what that does not reach from a node of 0; since then it would
	 * follow a number that it knows from step to step.
	 */
	walk.found = map;
	walk.node = FOLLOW(bpf_local_storage_map_bucket, walk.bucket, list.first);
	walk.bucket += size;
	bpf_loop(SCAN_MAX, walk_storage, &walk, 0);
	return walk.done ? walk.found - map : NOT_COUNTED;
}

/* ---- the whole ---- */

static __always_inline __s64 count_by_scan(__u64 map, __u32 type, __u32 max_entries,
					   struct record *record)
{
	switch (type) {
	case BPF_MAP_TYPE_SK_STORAGE:
	case BPF_MAP_TYPE_INODE_STORAGE:
	case BPF_MAP_TYPE_TASK_STORAGE:
	case CGRP_STORAGE:
		return storage_entries(map);
	case BPF_MAP_TYPE_BLOOM_FILTER:
		return set_bits(map, record);
	default:
		return used_slots(map, type, max_entries);
	}
}

/*
 * Counts are read while others change them: the sum of per-CPU counters can pass through values below
 * zero, some maps count an entry before they refuse it, a slot can be seen empty and the next one full
 * that took its place, and of a ring buffer's positions one is in a page that user space writes.
 */
static __always_inline __s64 bounded(__s64 count, const struct record *record, __u32 max_entries)
{
	if (count == NOT_COUNTED)
		return NOT_COUNTED;
	if (count < 0)
		return 0;
	/* A storage has no max_entries, and the bits of a bloom filter are no entries. */
	return max_entries && !record->hashes && count > max_entries ? max_entries : count;
}

/* Weak: the objects must open on kernels without it, where no program that calls it is loaded. */
extern __s64 bpf_map_sum_elem_count(const struct bpf_map *map) __ksym __weak;

enum means { FIELDS, LOOPS, KFUNC };

/*
 * A program for each of these and not branches of one, because a call of a kfunc or helper that the
 * kernel does not have is refused wherever the verifier can reach it: `means` is a constant.
 */
static __always_inline int count_map(struct bpf_iter__bpf_map *ctx, const enum means means)
{
	struct bpf_map *map = ctx->map;
	__s64 count = NOT_COUNTED;

	if (!map) /* the call after the last map */
		return 0;

	struct record record = { .id = map->id, .type = map->map_type };

	switch (record.type) {
	case BPF_MAP_TYPE_HASH:
	case BPF_MAP_TYPE_PERCPU_HASH:
	case BPF_MAP_TYPE_LRU_HASH:
	case BPF_MAP_TYPE_LRU_PERCPU_HASH:
	case BPF_MAP_TYPE_HASH_OF_MAPS:
		if (means == KFUNC)
			count = bpf_map_sum_elem_count(map);
		break;
	case BPF_MAP_TYPE_ARRAY:
	case BPF_MAP_TYPE_PERCPU_ARRAY:
		break;
	default: {
		__u64 address = address_of(ctx);

		if (!address)
			break;
		count = count_by_field(address, record.type);
		if (means != FIELDS && count == NOT_COUNTED)
			count = count_by_scan(address, record.type, map->max_entries, &record);
	}
	}
	record.count = bounded(count, &record, map->max_entries);
	/* A record that finds the buffer full is dropped, and the kernel calls for that map again
	 * on the next read: nothing to do about the error here. */
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
