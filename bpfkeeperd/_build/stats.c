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
	out->run_count = info.run_cnt;
	out->instructions = info.xlated_prog_len / 8;
	out->verified = info.verified_insns;
	return 0;
}
