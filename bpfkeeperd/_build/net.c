// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/bpf.h>

int keeper_clsact_make(int ifindex)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex,
		    .attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS);
	int err;

	keeper_log_clear();
	err = bpf_tc_hook_create(&hook);
	if (err == -EEXIST)
		return 0;
	return err ? err : 1;
}

static struct bpf_tc_hook filter_hook(const struct keeper_filter *filter)
{
	return (struct bpf_tc_hook){
		.sz = sizeof(struct bpf_tc_hook),
		.ifindex = filter->ifindex,
		.attach_point = filter->egress ? BPF_TC_EGRESS : BPF_TC_INGRESS,
	};
}

/* What the kernel answers where a filter, its qdisc or its interface is not there. */
static int absent(int err)
{
	return err == -EINVAL || err == -ENODEV ? -ENOENT : err;
}

int keeper_filter_put(const struct keeper_filter *filter, int prog_fd, bool replace)
{
	struct bpf_tc_hook hook = filter_hook(filter);
	LIBBPF_OPTS(bpf_tc_opts, opts, .prog_fd = prog_fd, .handle = filter->handle,
		    .priority = filter->priority, .flags = replace ? BPF_TC_F_REPLACE : 0);

	keeper_log_clear();
	return bpf_tc_attach(&hook, &opts);
}

int keeper_filter_program(const struct keeper_filter *filter, uint32_t *prog_id)
{
	struct bpf_tc_hook hook = filter_hook(filter);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = filter->handle, .priority = filter->priority);
	int err;

	keeper_log_clear();
	err = bpf_tc_query(&hook, &opts);
	*prog_id = opts.prog_id;
	return absent(err);
}

int keeper_filter_remove(const struct keeper_filter *filter)
{
	struct bpf_tc_hook hook = filter_hook(filter);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = filter->handle, .priority = filter->priority);

	keeper_log_clear();
	return absent(bpf_tc_detach(&hook, &opts));
}
