// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * An old program as it is released again and again: VERSION says which one ran. SECTION is its
 * section; by tc's form (TC9) one map is pinned for the object and one for all.
 */
#include "forms.h"

#ifndef VERSION
#define VERSION 1
#endif
#ifndef SECTION
#define SECTION "filter"
#endif
#ifndef SIZE
#define SIZE 4
#endif
#if FORM == TC9
#define PIN(namespace) .pinning = namespace
#else
#define PIN(namespace)
#endif

DEFINITION SEC("maps") counts = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 4) };
DEFINITION SEC("maps") own = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, SIZE), PIN(1) };
DEFINITION SEC("maps") shared = { SIZES(BPF_MAP_TYPE_HASH, 4, 8, 16), PIN(2) };

SEC(SECTION)
int count(void *context)
{
	__u32 key = VERSION;
	__u64 one = 1, *value = bpf_map_lookup_elem(&shared, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
	else
		bpf_map_update_elem(&shared, &key, &one, BPF_NOEXIST);
	add(&counts, VERSION, 1);
	add(&own, VERSION, 1);
	return 1;
}
