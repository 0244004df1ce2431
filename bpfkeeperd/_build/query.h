/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/*
 * The IDs of the links at a hook, at most count of them; a program without a link counts as 0. The
 * target is a descriptor, or the index of an interface in this thread's network namespace. Returns
 * how many there are, or -errno.
 */
int keeper_hook_links(int target, uint32_t attach_type, uint32_t *ids, uint32_t count);
/* The program that an interface of this thread's network namespace runs for XDP; 0: none. */
int keeper_xdp_program(int ifindex, uint32_t *id);
