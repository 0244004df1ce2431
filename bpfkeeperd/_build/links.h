/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/* Links: made with whatever the kernel takes, and described. */

/* A path (PATH_MAX) with an offset is the longest that there is to tell. */
#define KEEPER_DETAIL_SIZE 4160

struct keeper_link_info {
	uint32_t id, type, prog_id, attach_type;
	/*
	 * cgroup ID, interface index, inode of a network namespace, map ID, keeper_place of a probe in
	 * a binary; 1 where a link has no such thing, or nobody knows; 0: the target is gone.
	 */
	uint64_t target_id;
	/*
	 * What else tells its place: a tracepoint's name; "family/hook/priority/flags"; "p:" or "r:"
	 * (at its return) and a function or a binary with "+offset"; "event type/config"; what an
	 * iterator goes through. Empty where the kernel does not say.
	 */
	char detail[KEEPER_DETAIL_SIZE];
};

int keeper_link_info(int fd, struct keeper_link_info *info);

/*
 * BPF_LINK_CREATE. target is a descriptor or an interface index; extra is the rest of the command's
 * attributes, which differs from kind to kind (at most 112 bytes).
 */
int keeper_link_create(int prog_fd, int target, uint32_t attach_type, uint32_t flags,
		       const void *extra, uint32_t extra_size);
/* With old_prog_fd >= 0 the link is updated only while it runs that program, else EPERM. */
int keeper_link_update(int link_fd, int prog_fd, int old_prog_fd);

/*
 * Updates links one after the other, each only while it runs its old program, up to the first that
 * fails. *done tells how many were updated.
 */
struct keeper_link_swap {
	int32_t link_fd, prog_fd, old_prog_fd;
};
int keeper_link_swap_all(const struct keeper_link_swap *swaps, uint32_t count, uint32_t *done);
