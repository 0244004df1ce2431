/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/* What it takes to ask a kernel what it can do. */

/*
 * Loads a program that only returns a number. function names what it is loaded for, as libbpf
 * prefixes it for the attach type (fentry, LSM, iterators, tp_btf); NULL for nothing. -ESRCH: the
 * kernel's BTF does not have that function, or there is none.
 */
int keeper_probe_load(uint32_t type, uint32_t expected_attach_type, uint32_t flags,
		      const char *function, int returned);
/* BPF_PROG_ATTACH. */
int keeper_probe_attach(int prog_fd, int target_fd, uint32_t attach_type);
/* Makes a map of struct_ops with a BTF type that is none; never succeeds. */
int keeper_probe_struct_ops(uint32_t flags);
