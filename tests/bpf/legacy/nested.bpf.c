// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Maps of maps: the samples say which map is the pattern of the inner ones, tc also which slots
 * they are in. The program counts what it finds in the slots.
 */
#include "forms.h"

#ifndef VERSION
#define VERSION 1
#endif

#if FORM == TC9
DEFINITION SEC("maps") inner_a = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 2), .id = 7, .inner_idx = 3 };
static DEFINITION SEC("maps") inner_b = {
	SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 2), .id = 7, .inner_idx = 1,
};
DEFINITION SEC("maps") spare = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 2), .id = 7, .inner_idx = -1 };
DEFINITION SEC("maps") outer = { SIZES(BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 5), .inner_id = 7 };
DEFINITION SEC("maps") by_key = { SIZES(BPF_MAP_TYPE_HASH_OF_MAPS, 4, 4, 5), .inner_id = 7 };
#else
DEFINITION SEC("maps") found = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 4) };
DEFINITION SEC("maps") pattern = { SIZES(BPF_MAP_TYPE_HASH, 4, 8, 9) };
DEFINITION SEC("maps") outer = { SIZES(BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 0, 5), .inner_map_idx = 1 };
DEFINITION SEC("maps") by_key = { SIZES(BPF_MAP_TYPE_HASH_OF_MAPS, 8, 0, 5), .inner_map_idx = 1 };
#endif

SEC("socket")
int program(void *context)
{
	__u32 slot = 3;
	void *inner = bpf_map_lookup_elem(&outer, &slot);

	if (inner)
		add(inner, 1, 5 * VERSION);
	slot = 1;
	inner = bpf_map_lookup_elem(&outer, &slot);
	if (inner)
		add(inner, 0, 7 * VERSION);
	return 1;
}
