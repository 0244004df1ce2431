// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <sys/syscall.h>

/* BPF_PROG_QUERY of union bpf_attr, as of Linux 6.6 */
struct query {
	__u32 target, attach_type, query_flags, attach_flags;
	__u64 prog_ids;
	__u32 count, pad;
	__u64 prog_attach_flags, link_ids, link_attach_flags, revision;
};

int keeper_hook_links(int target, uint32_t attach_type, uint32_t *ids, uint32_t count)
{
	__u32 programs[64];
	struct query query = {
		.target = target,
		.attach_type = attach_type,
		.prog_ids = (__u64)(unsigned long)programs,
		.link_ids = (__u64)(unsigned long)ids,
		.count = count < 64 ? count : 64,
	};

	memset(ids, 0, count * sizeof(*ids));
	if (syscall(__NR_bpf, BPF_PROG_QUERY, &query, sizeof(query)))
		return errno == ENOENT ? 0 : -errno;
	return query.count;
}

int keeper_xdp_program(int ifindex, uint32_t *id)
{
	return bpf_xdp_query_id(ifindex, 0, id);
}
