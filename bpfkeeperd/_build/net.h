/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/* Places of the network stack that several programs share: who is there, and filters of tc. */

/*
 * A filter of tc in the clsact qdisc of an interface, of the calling thread's network namespace. It
 * runs in direct-action mode. What libbpf says of a failure is in keeper_log().
 */
struct keeper_filter {
	int ifindex;
	bool egress;
	uint32_t handle, priority;
};

/* Makes the qdisc where there is none; returns 1 when it made it. */
int keeper_clsact_make(int ifindex);
/* With replace the filter that has the handle and priority gives way in one step; else -EEXIST. */
int keeper_filter_put(const struct keeper_filter *filter, int prog_fd, bool replace);
/* The ID of the program that a filter runs; -ENOENT: there is none, or no qdisc or interface. */
int keeper_filter_program(const struct keeper_filter *filter, uint32_t *prog_id);
/* -ENOENT as above. */
int keeper_filter_remove(const struct keeper_filter *filter);
