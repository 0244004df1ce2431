// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* ---- what the kernel counts of a program ---- */

int keeper_enable_stats(void)
{
	return bpf_enable_stats(BPF_STATS_RUN_TIME);
}

int keeper_prog_stats(int fd, struct keeper_prog_stats *out)
{
	struct bpf_prog_info info = {};
	__u32 size = sizeof(info);
	int err = bpf_obj_get_info_by_fd(fd, &info, &size);

	if (err)
		return err;
	*out = (struct keeper_prog_stats){
		.id = info.id,
		.type = info.type,
		.instructions = info.xlated_prog_len / 8,
		.verified = info.verified_insns,
		.run_count = info.run_cnt,
		.run_time_ns = info.run_time_ns,
		.misses = info.recursion_misses,
		.load_time_ns = info.load_time,
	};
	return 0;
}

static int pinned_prog_stats(const char *path, bool memory, struct keeper_prog_stats *out)
{
	int fd = bpf_obj_get(path), err;
	uint64_t id;

	if (fd < 0)
		return fd;
	err = keeper_kind(fd) == KEEPER_PROG ? keeper_prog_stats(fd, out) : -EINVAL;
	if (!err && memory)
		err = fdinfo_memory(fd, "prog_id:", &id, &out->memory_bytes);
	close(fd);
	return err;
}

void keeper_pinned_prog_stats(const char *const *paths, uint32_t count, bool memory,
			      struct keeper_prog_stats *out)
{
	for (uint32_t i = 0; i < count; i++) {
		out[i] = (struct keeper_prog_stats){};
		out[i].error = -pinned_prog_stats(paths[i], memory, &out[i]);
	}
}
