// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* tc's pinning: none, for the object, for all, and PINNING for one more. */
#include "forms.h"

#ifndef PINNING
#define PINNING 0
#endif

DEFINITION SEC("maps") loose = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 3), .pinning = 0 };
DEFINITION SEC("maps") own = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 3), .pinning = 1 };
DEFINITION SEC("maps") shared = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 3), .pinning = 2 };
DEFINITION SEC("maps") custom = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 3), .pinning = PINNING };

SEC("classifier")
int program(void *context)
{
	add(&loose, 0, 1);
	add(&own, 0, 1);
	add(&shared, 0, 1);
	add(&custom, 0, 1);
	return 1;
}
