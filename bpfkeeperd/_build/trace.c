// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <linux/perf_event.h>

/* enum bpf_attach_type; the headers at hand may know fewer of them */
enum { ATTACH_ITER = 28, ATTACH_PERF_EVENT = 41, ATTACH_KPROBE_MULTI = 42, ATTACH_UPROBE_MULTI = 48 };

int keeper_perf_event_open(uint32_t type, uint64_t config, const char *place, uint64_t offset,
			   uint64_t often, bool is_frequency, int pid, int cpu)
{
	struct perf_event_attr attr = {
		.type = type, .size = sizeof(attr), .config = config,
		.sample_period = often, .freq = is_frequency,
	};
	int fd;

	if (place) {
		attr.config1 = (uint64_t)(unsigned long)place;
		attr.config2 = offset;
	}
	fd = syscall(__NR_perf_event_open, &attr, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int keeper_perf_link(int prog_fd, int event_fd, uint64_t cookie)
{
	return keeper_link_create(prog_fd, event_fd, ATTACH_PERF_EVENT, 0, &cookie, sizeof(cookie));
}

int keeper_iter_link(int prog_fd, int map_fd)
{
	struct { __u32 map_fd, room[3]; } info = { .map_fd = map_fd };
	struct { __u64 info; __u32 size, pad; } extra = {
		.info = (__u64)(unsigned long)&info, .size = sizeof(info),
	};

	if (map_fd < 0)
		return keeper_link_create(prog_fd, 0, ATTACH_ITER, 0, NULL, 0);
	return keeper_link_create(prog_fd, 0, ATTACH_ITER, 0, &extra, sizeof(extra));
}

int keeper_kprobe_multi_link(int prog_fd, const char **symbols, uint32_t count, bool at_return)
{
	struct { __u32 flags, count; __u64 symbols, addresses, cookies; } extra = {
		.flags = at_return, .count = count, .symbols = (__u64)(unsigned long)symbols,
	};

	return keeper_link_create(prog_fd, 0, ATTACH_KPROBE_MULTI, 0, &extra, sizeof(extra));
}

int keeper_uprobe_multi_link(int prog_fd, const char *path, const uint64_t *offsets,
			     uint64_t cookie, uint32_t count, uint32_t pid, bool at_return)
{
	__u64 *cookies = malloc(count * sizeof(*cookies));
	struct {
		__u64 path, offsets, counters, cookies;
		__u32 count, flags, pid, pad;
	} extra = {
		.path = (__u64)(unsigned long)path, .offsets = (__u64)(unsigned long)offsets,
		.cookies = (__u64)(unsigned long)cookies,
		.count = count, .flags = at_return, .pid = pid,
	};
	int fd;

	if (!cookies)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++)
		cookies[i] = cookie;
	fd = keeper_link_create(prog_fd, 0, ATTACH_UPROBE_MULTI, 0, &extra, sizeof(extra));
	free(cookies);
	return fd;
}

/* FNV-1a */
static uint64_t mixed(uint64_t hash, uint64_t number)
{
	for (int i = 0; i < 8; i++, number >>= 8)
		hash = (hash ^ (number & 0xff)) * 0x100000001b3;
	return hash;
}

uint64_t keeper_place(uint64_t device, uint64_t inode, const uint64_t *offsets, uint32_t count)
{
	uint64_t hash = mixed(mixed(0xcbf29ce484222325, device), inode);

	for (uint32_t i = 0; i < count; i++)
		hash = mixed(hash, offsets[i]);
	return hash < 2 ? 2 : hash;
}
