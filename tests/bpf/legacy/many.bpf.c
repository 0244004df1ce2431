// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* Forty maps, every other one static, each written with the number in its name. */
#include "forms.h"

#define TEN(each, tens)                                                                            \
	each(tens##0) each(tens##2) each(tens##4) each(tens##6) each(tens##8)
#define ALL(each) TEN(each, 1) TEN(each, 2) TEN(each, 3) TEN(each, 4)
#define DEFINE(number)                                                                             \
	static DEFINITION SEC("maps") m_##number = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, number) };    \
	DEFINITION SEC("maps") g_##number = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, number + 1) };
ALL(DEFINE)

/* Not inlined: its instructions, and their relocations, are in .text. */
static __attribute__((noinline)) int below(void)
{
#define WRITE(number) add(&m_##number, 0, number);
	ALL(WRITE)
	return 0;
}

SEC("socket/anything")
int program(void *context)
{
#define WRITE_GLOBAL(number) add(&g_##number, number, number + 1);
	ALL(WRITE_GLOBAL)
	return below() + 1;
}
