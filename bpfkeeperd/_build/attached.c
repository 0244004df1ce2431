// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <linux/if_link.h>

static int append_link(struct buffer *out, int fd)
{
	struct keeper_pin pin = { .kind = KEEPER_LINK };
	struct keeper_link_info link;
	int err = keeper_link_info(fd, &link);

	if (err)
		return 0;	/* of a kind that does not tell: nothing can be compared with it */
	pin.id = link.id;
	pin.type = link.type;
	pin.prog_id = link.prog_id;
	pin.attach_type = link.attach_type;
	pin.target_id = link.target_id;
	pin.detail_size = strlen(link.detail);
	return buffer_append(out, &pin, sizeof(pin)) ?:
	       buffer_append(out, link.detail, pin.detail_size);
}

int keeper_links(char **stream, size_t *size)
{
	struct buffer out = {};
	__u32 id = 0;
	int err;

	while (!(err = bpf_link_get_next_id(id, &id))) {
		int fd = bpf_link_get_fd_by_id(id);

		/* it went meanwhile, or is being made: it has a number before it is attached */
		if (fd == -ENOENT || fd == -EAGAIN)
			continue;
		err = fd < 0 ? fd : append_link(&out, fd);
		if (fd >= 0)
			close(fd);
		if (err)
			break;
	}
	if (err != -ENOENT) {
		free(out.data);
		return err;
	}
	*stream = out.data;
	*size = out.size;
	return 0;
}

int keeper_prog_query(uint32_t target, uint32_t attach_type, bool with_links,
		      struct keeper_attached *out)
{
	/* the query part of union bpf_attr, as of Linux 6.18; what an older one lacks must be 0 */
	struct {
		__u32 target, attach_type, query_flags, attach_flags;
		__u64 prog_ids;
		__u32 count, pad;
		__u64 prog_attach_flags, link_ids, link_attach_flags, revision;
	} attr = {
		.target = target, .attach_type = attach_type,
		.prog_ids = (unsigned long)out->programs,
		.link_ids = with_links ? (unsigned long)out->links : 0,
		.count = sizeof(out->programs) / sizeof(out->programs[0]),
	};

	memset(out, 0, sizeof(*out));
	if (syscall(__NR_bpf, BPF_PROG_QUERY, &attr, sizeof(attr)) < 0)
		/* a kernel that does not know so much of the structure has no such hook either */
		return errno == E2BIG ? -EINVAL : -errno;
	out->flags = attr.attach_flags;
	out->count = attr.count;
	out->revision = attr.revision;
	return 0;
}

int keeper_xdp_query(uint32_t index, struct keeper_xdp *out)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, opts);
	int err = bpf_xdp_query(index, 0, &opts);

	if (err)
		return err;
	out->prog_id = opts.drv_prog_id ?: opts.skb_prog_id ?: opts.prog_id;
	out->generic = opts.attach_mode == XDP_ATTACHED_SKB;
	return 0;
}

int keeper_xdp_attach(uint32_t index, int prog_fd, uint32_t flags, int old_prog_fd)
{
	LIBBPF_OPTS(bpf_xdp_attach_opts, opts, .old_prog_fd = old_prog_fd);

	if (old_prog_fd < 0)
		return bpf_xdp_attach(index, prog_fd, flags | XDP_FLAGS_UPDATE_IF_NOEXIST, NULL);
	return bpf_xdp_attach(index, prog_fd, flags, &opts);
}
