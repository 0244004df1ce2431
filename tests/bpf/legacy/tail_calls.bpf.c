// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* tc's way: a program in the section ID/SLOT is put into the program array with that ID. What they
   count is multiplied by VERSION; PINNING is that of the first array. */
#define FORM TC9
#include "forms.h"

#ifndef VERSION
#define VERSION 1
#endif
#ifndef PINNING
#define PINNING 0
#endif

DEFINITION SEC("maps") jumps = { SIZES(BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 6), .id = 42, .pinning = PINNING };
DEFINITION SEC("maps") more = { SIZES(BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 2), .id = 0x2b };
DEFINITION SEC("maps") empty = { SIZES(BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 2), .id = 44 };
DEFINITION SEC("maps") steps = { SIZES(BPF_MAP_TYPE_ARRAY, 4, 8, 4) };

SEC("42/0")
int first(struct __sk_buff *skb)
{
	add(&steps, 0, 1 * VERSION);
	bpf_tail_call(skb, &jumps, 5);
	return 1;
}

SEC("42/5")
int second(struct __sk_buff *skb)
{
	add(&steps, 1, 2 * VERSION);
	bpf_tail_call(skb, &more, 1);
	return 1;
}

SEC("0x2b/01")
int third(struct __sk_buff *skb)
{
	add(&steps, 2, 4 * VERSION);
	return 1;
}

/* There is no map with this ID: a program like others. */
SEC("99/0")
int stranger(struct __sk_buff *skb)
{
	return 1;
}

SEC("classifier")
int program(struct __sk_buff *skb)
{
	add(&steps, 3, 8 * VERSION);
	bpf_tail_call(skb, &jumps, 0);
	return 1;
}
