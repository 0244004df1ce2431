// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* Types of key and value beside the definition; not followed where the sizes are others. */
#include "forms.h"

#define ANNOTATE(name, type_key, type_value)                                                       \
	struct ____btf_map_##name {                                                                \
		type_key key;                                                                      \
		type_value value;                                                                  \
	};                                                                                         \
	struct ____btf_map_##name __attribute__((section(".maps." #name), used))                   \
		____btf_map_##name = {}

struct address {
	__u32 host;
	__u16 port;
};

DEFINITION SEC("maps") known = { SIZES(BPF_MAP_TYPE_HASH, sizeof(struct address), 8, 6) };
ANNOTATE(known, struct address, __u64);

DEFINITION SEC("maps") other = { SIZES(BPF_MAP_TYPE_HASH, 4, 8, 6) };
ANNOTATE(other, __u64, __u64);

/* Maps of this type must have types. */
DEFINITION SEC("maps") local = {
	SIZES(BPF_MAP_TYPE_SK_STORAGE, 4, 8, 0), FLAGS(BPF_F_NO_PREALLOC),
};
ANNOTATE(local, int, __u64);

SEC("socket")
int program(void *context)
{
	struct address key = {};
	__u32 number = 0;

	bpf_map_lookup_elem(&other, &number);
	return bpf_map_lookup_elem(&known, &key) ? 1 : 0;
}
