/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/*
 * The structs that defined maps before BTF, and how each is written. What a form does not have is
 * left out. FORM chooses.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define DEF5 1		/* libbpf before 1.0 */
#define DEF5_PADDED 2	/* the same, with words for later */
#define DEF6 3		/* the kernel's samples, at first */
#define DEF7 4		/* the kernel's samples */
#define TC4 5		/* tc: the least it took */
#define TC7 6		/* tc before inner maps */
#define TC9 7		/* tc */
#define GOBPF 8		/* sections of their own */

#if FORM == TC4 || FORM == TC7 || FORM == TC9
struct bpf_elf_map {
	__u32 type, size_key, size_value, max_elem;
#if FORM == TC7
	__u32 flags, id, pinning;
#elif FORM == TC9
	__u32 flags, id, pinning, inner_id, inner_idx;
#endif
};
#define DEFINITION struct bpf_elf_map
#define SIZES(map_type, key, value, max)                                                           \
	.type = map_type, .size_key = key, .size_value = value, .max_elem = max
#define FLAGS(bits) .flags = bits
#else
struct bpf_map_def {
	unsigned int type, key_size, value_size, max_entries, map_flags;
#if FORM == DEF5_PADDED
	unsigned int later[3];
#elif FORM == DEF6
	unsigned int inner_map_idx;
#elif FORM == DEF7
	unsigned int inner_map_idx, numa_node;
#elif FORM == GOBPF
	unsigned int pinning;
	char namespace[256];
#endif
};
#define DEFINITION struct bpf_map_def
#define SIZES(map_type, key, value, max)                                                           \
	.type = map_type, .key_size = key, .value_size = value, .max_entries = max
#define FLAGS(bits) .map_flags = bits
#endif

#if FORM == GOBPF
#define MAPS(name) SEC("maps/" #name)
#else
#define MAPS(name) SEC("maps")
#endif

static __always_inline void add(void *map, __u32 key, __u64 number)
{
	__u64 *value = bpf_map_lookup_elem(map, &key);

	if (value)
		__sync_fetch_and_add(value, number);
}

char _license[] SEC("license") = "GPL";
