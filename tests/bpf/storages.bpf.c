// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * One map of each local storage: their BTF is wanted at creation, and libbpf gives it. With ONLY, a
 * name, and TYPE, its number, there is that one alone, for kernels that do not have all.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define STORAGE(name, number)                                                                      \
	struct {                                                                                   \
		__uint(type, number);                                                              \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                              \
		__type(key, int);                                                                  \
		__type(value, __u64);                                                              \
	} name SEC(".maps")

#ifdef ONLY
STORAGE(ONLY, TYPE);
#else
STORAGE(sk_storage, BPF_MAP_TYPE_SK_STORAGE);
STORAGE(inode_storage, BPF_MAP_TYPE_INODE_STORAGE);
STORAGE(task_storage, BPF_MAP_TYPE_TASK_STORAGE);
STORAGE(cgrp_storage, 32); /* BPF_MAP_TYPE_CGRP_STORAGE, Linux 6.2: the headers may be older */
#endif
