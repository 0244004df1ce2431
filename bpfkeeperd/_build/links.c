// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/bpf.h>

/* enum bpf_link_type; the headers at hand may know fewer of them */
enum {
	LINK_RAW_TRACEPOINT = 1, LINK_CGROUP = 3, LINK_ITER = 4, LINK_NETNS = 5, LINK_XDP = 6,
	LINK_PERF_EVENT = 7, LINK_STRUCT_OPS = 9, LINK_NETFILTER = 10, LINK_TCX = 11,
	LINK_UPROBE_MULTI = 12, LINK_NETKIT = 13, LINK_SOCKMAP = 14,
};

/* enum bpf_perf_event_type */
enum { PERF_UPROBE = 1, PERF_URETPROBE, PERF_KPROBE, PERF_KRETPROBE, PERF_TRACEPOINT, PERF_EVENT };

/* struct bpf_link_info of include/uapi/linux/bpf.h, as of Linux 6.18 */
struct link_info {
	__u32 type, id, prog_id, pad;
	union {
		struct { __u64 name; __u32 size; } raw_tracepoint;
		struct { __u32 attach_type; } tracing;
		struct { __u64 cgroup_id; __u32 attach_type; } cgroup;
		struct { __u64 name; __u32 size, map_id; } iter;
		struct { __u32 inode, attach_type; } netns;
		struct { __u32 ifindex, attach_type; } device;	/* XDP (no attach_type), TCX, netkit */
		struct { __u32 map_id, attach_type; } map;	/* struct_ops (no attach_type), sockmap */
		struct { __u32 family, hook; __s32 priority; __u32 flags; } netfilter;
		struct {
			__u64 path, offsets, ref_ctr_offsets, cookies;
			__u32 size, count, flags, pid;
		} uprobe_multi;
		struct {
			__u32 type, pad;
			union {
				struct { __u64 name; __u32 size, offset; __u64 cookie; } place;
				struct { __u64 config; __u32 type; } event;
			};
		} perf;
		__u64 room[15];
	};
};

/* Asks again, with room for the name that the first answer told the type of. */
static int link_name(int fd, struct link_info *info, char *name, __u32 size)
{
	__u32 info_size = sizeof(*info), perf = info->type == LINK_PERF_EVENT ? info->perf.type : 0;
	__u64 pointer = (__u64)(unsigned long)name;

	name[0] = '\0';
	memset(info->room, 0, sizeof(info->room));
	switch (info->type) {
	case LINK_RAW_TRACEPOINT:
	case LINK_ITER:
		info->raw_tracepoint.name = pointer;
		info->raw_tracepoint.size = size;
		break;
	case LINK_UPROBE_MULTI:
		info->uprobe_multi.path = pointer;
		info->uprobe_multi.size = size;
		break;
	case LINK_PERF_EVENT:
		if (perf == PERF_EVENT)
			break;
		info->perf.place.name = pointer;
		info->perf.place.size = size;
		break;
	}
	return bpf_obj_get_info_by_fd(fd, (void *)info, &info_size);
}

static void perf_detail(const struct link_info *info, const char *name, char *detail, size_t size)
{
	if (!name[0] && info->perf.type != PERF_EVENT)
		return;	/* the kernel does not say */
	switch (info->perf.type) {
	case PERF_UPROBE:
	case PERF_KPROBE:
		snprintf(detail, size, "p:%s+%u", name, info->perf.place.offset);
		break;
	case PERF_URETPROBE:
	case PERF_KRETPROBE:
		snprintf(detail, size, "r:%s+%u", name, info->perf.place.offset);
		break;
	case PERF_TRACEPOINT:
		snprintf(detail, size, "%s", name);
		break;
	case PERF_EVENT:
		snprintf(detail, size, "event %u/%llu", info->perf.event.type,
			 (unsigned long long)info->perf.event.config);
		break;
	}
}

/* The file and the places in it that a probe is at, as keeper_place has them; 1: nobody knows. */
static uint64_t probe_place(const struct link_info *info, const char *path)
{
	uint64_t offset = info->perf.place.offset;
	struct stat found;

	if (info->perf.type != PERF_UPROBE && info->perf.type != PERF_URETPROBE)
		return 1;
	if (info->perf.place.cookie)	/* of ours, since Linux 6.9 */
		return info->perf.place.cookie;
	if (!path[0] || stat(path, &found))
		return 1;
	return keeper_place(found.st_dev, found.st_ino, &offset, 1);
}

static uint64_t multi_place(int fd, const char *path)
{
	static const char deleted[] = " (deleted)";
	size_t length = strlen(path);
	struct link_info info = {};
	__u32 size = sizeof(info);
	__u64 cookie = 0;

	/* Each place has the same cookie, and ENOSPC says that there are more of them. */
	info.uprobe_multi.cookies = (__u64)(unsigned long)&cookie;
	info.uprobe_multi.count = 1;
	bpf_obj_get_info_by_fd(fd, (void *)&info, &size);
	if (cookie)
		return cookie;
	length -= length < sizeof(deleted) ? length : sizeof(deleted) - 1;
	return strcmp(path + length, deleted) != 0;	/* 0: the target is gone */
}

/* Links of which the place is a name. */
static int named_link(int fd, struct link_info *info, struct keeper_link_info *out)
{
	char name[PATH_MAX] = "";
	int err = link_name(fd, info, name, sizeof(name));

	if (err)
		return err;
	out->target_id = 1;
	if (info->type == LINK_PERF_EVENT) {
		perf_detail(info, name, out->detail, sizeof(out->detail));
		out->target_id = probe_place(info, name);
		return 0;
	}
	snprintf(out->detail, sizeof(out->detail), "%s", name);
	if (info->type == LINK_UPROBE_MULTI)
		out->target_id = multi_place(fd, name);
	/* "bpf_map_elem" and its like go through one map */
	if (info->type == LINK_ITER && !strncmp(name, "bpf_", 4) && info->iter.map_id)
		out->target_id = info->iter.map_id;
	return 0;
}

int keeper_link_info(int fd, struct keeper_link_info *out)
{
	struct link_info info = {};
	__u32 size = sizeof(info);
	int err = bpf_obj_get_info_by_fd(fd, (void *)&info, &size);

	if (err)
		return err;
	*out = (struct keeper_link_info){ .id = info.id, .type = info.type, .prog_id = info.prog_id };
	switch (info.type) {
	case LINK_CGROUP:
		out->target_id = info.cgroup.cgroup_id;
		out->attach_type = info.cgroup.attach_type;
		return 0;
	case LINK_XDP:
		out->target_id = info.device.ifindex;
		out->attach_type = 37;
		return 0;
	case LINK_NETNS:
	case LINK_TCX:
	case LINK_NETKIT:
	case LINK_SOCKMAP:
		out->target_id = info.device.ifindex;
		out->attach_type = info.device.attach_type;
		return 0;
	case LINK_STRUCT_OPS:
		out->target_id = info.map.map_id;
		out->attach_type = 44;
		return 0;
	case LINK_NETFILTER:
		out->target_id = 1;
		out->attach_type = 45;
		snprintf(out->detail, sizeof(out->detail), "%u/%u/%d/%u", info.netfilter.family,
			 info.netfilter.hook, info.netfilter.priority, info.netfilter.flags);
		return 0;
	case LINK_RAW_TRACEPOINT:
	case LINK_ITER:
	case LINK_PERF_EVENT:
	case LINK_UPROBE_MULTI:
		return named_link(fd, &info, out);
	case 2:	/* BPF_LINK_TYPE_TRACING */
		out->attach_type = info.tracing.attach_type;
		/* fall through */
	default:
		out->target_id = 1;
		return 0;
	}
}

int keeper_link_create(int prog_fd, int target, uint32_t attach_type, uint32_t flags,
		       const void *extra, uint32_t extra_size)
{
	struct { __u32 prog_fd, target, attach_type, flags; char extra[112]; } attr = {
		.prog_fd = prog_fd, .target = target, .attach_type = attach_type, .flags = flags,
	};
	int fd;

	if (extra_size > sizeof(attr.extra))
		return -E2BIG;
	if (extra_size)
		memcpy(attr.extra, extra, extra_size);
	fd = syscall(__NR_bpf, BPF_LINK_CREATE, &attr, 16 + extra_size);
	return fd < 0 ? -errno : fd;
}

int keeper_link_update(int link_fd, int prog_fd, int old_prog_fd)
{
	LIBBPF_OPTS(bpf_link_update_opts, opts);

	if (old_prog_fd >= 0) {
		opts.flags = BPF_F_REPLACE;
		opts.old_prog_fd = old_prog_fd;
	}
	return bpf_link_update(link_fd, prog_fd, &opts);
}

int keeper_link_swap_all(const struct keeper_link_swap *swaps, uint32_t count, uint32_t *done)
{
	for (*done = 0; *done < count; ++*done) {
		const struct keeper_link_swap *swap = &swaps[*done];
		int err = keeper_link_update(swap->link_fd, swap->prog_fd, swap->old_prog_fd);

		if (err)
			return err;
	}
	return 0;
}
