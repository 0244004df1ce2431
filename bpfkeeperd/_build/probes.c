// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <errno.h>
#include <unistd.h>
#include <linux/bpf.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>

int keeper_probe_load(uint32_t type, uint32_t expected_attach_type, uint32_t flags,
		      const char *function, int returned)
{
	const struct bpf_insn insns[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .imm = returned },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = expected_attach_type,
		    .prog_flags = flags);

	if (function) {
		int id = libbpf_find_vmlinux_btf_id(function, expected_attach_type);

		if (id <= 0)
			return -ESRCH;
		opts.attach_btf_id = id;
	}
	return bpf_prog_load(type, "keeper_probe", "GPL", insns, 2, &opts);
}

int keeper_probe_attach(int prog_fd, int target_fd, uint32_t attach_type)
{
	return bpf_prog_attach(prog_fd, target_fd, attach_type, 0);
}

int keeper_probe_struct_ops(uint32_t flags)
{
	/* Type 1 of the kernel's BTF is some integer. */
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = flags, .btf_vmlinux_value_type_id = 1);
	int fd = bpf_map_create(26 /* BPF_MAP_TYPE_STRUCT_OPS */, "keeper_probe", 4, 8, 1, &opts);

	if (fd >= 0)
		close(fd);
	return fd;
}
