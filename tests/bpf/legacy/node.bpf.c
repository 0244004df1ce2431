// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* A map for one NUMA node, and one whose node means nothing, as its flag is not set. */
#define FORM DEF7
#include "forms.h"

#ifndef NODE
#define NODE 0
#endif

DEFINITION SEC("maps") placed = {
	SIZES(BPF_MAP_TYPE_HASH, 4, 8, 6), FLAGS(BPF_F_NUMA_NODE), .numa_node = NODE,
};
DEFINITION SEC("maps") anywhere = {
	SIZES(BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 6), .inner_map_idx = 0, .numa_node = 1023,
};

SEC("socket")
int program(void *context)
{
	__u32 key = 0;

	bpf_map_lookup_elem(&anywhere, &key);
	return bpf_map_lookup_elem(&placed, &key) ? 1 : 0;
}
