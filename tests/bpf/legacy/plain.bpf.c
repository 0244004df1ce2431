// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Maps of several kinds in one section, each written by the program with a number of its own: who
 * reads them sees whether an instruction got the wrong map. PROGRAM_SECTION is its section, FORM
 * how maps are defined (forms.h).
 */
#include "forms.h"

#ifndef PROGRAM_SECTION
#define PROGRAM_SECTION "socket1"
#endif

DEFINITION MAPS(counts) counts = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 3) };

/* Seen from other sections only through the section they lie in. */
static DEFINITION MAPS(hidden) hidden = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 5) };
static DEFINITION MAPS(deeper) deeper = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 7) };

DEFINITION MAPS(table) table = {
	SIZES(BPF_MAP_TYPE_HASH, 4, 8, 11),
#if FORM != TC4
	FLAGS(BPF_F_NO_PREALLOC),
#endif
};

SEC(PROGRAM_SECTION)
int program(void *context)
{
	__u32 key = 3;
	__u64 value = 1000;

	add(&counts, 0, 1);
	add(&hidden, 1, 10);
	add(&deeper, 2, 100);
	bpf_map_update_elem(&table, &key, &value, BPF_ANY);
	add(&hidden, 4, 20);
	return 1;
}

/* A second program, in a section whose name says nothing. */
SEC("second_one")
int another(void *context)
{
	add(&deeper, 6, 500);
	return 1;
}
