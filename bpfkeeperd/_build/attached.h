/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/* What is attached on this machine, by whomever: with a link, pinned or not, or without one. */

/*
 * Every link of the machine (in all network namespaces), as keeper_scan gives those below a
 * directory, without a path. The caller frees *stream. It takes CAP_SYS_ADMIN: -EPERM.
 */
int keeper_links(char **stream, size_t *size);

struct keeper_attached {
	uint32_t flags;		/* of a cgroup: BPF_F_ALLOW_OVERRIDE, BPF_F_ALLOW_MULTI */
	uint32_t count;
	uint32_t programs[64];	/* a place takes no more */
	uint32_t links[64];	/* TCX and netkit only; 0: attached without a link */
	uint64_t revision;	/* TCX and netkit: grows with each change of the list */
};

/*
 * BPF_PROG_QUERY: what is attached at a place, a descriptor or the index of an interface of this
 * thread's network namespace, in the order in which it runs. -EINVAL: there is no such hook.
 */
int keeper_prog_query(uint32_t target, uint32_t attach_type, bool with_links,
		      struct keeper_attached *out);

/* The program that an interface of this network namespace runs, by its ID (0: none), and how. */
struct keeper_xdp {
	uint32_t prog_id;
	bool generic;
};
int keeper_xdp_query(uint32_t index, struct keeper_xdp *out);
/* Attaches without a link, where old_prog_fd is attached (-1: nothing); prog_fd -1 detaches. */
int keeper_xdp_attach(uint32_t index, int prog_fd, uint32_t flags, int old_prog_fd);
