// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A plain libbpf program, as people write them: opens and loads an object with a pin root, attaches
 * each of its programs, and holds what it made until standard input ends.
 *
 *   plain_attach OBJECT PIN_ROOT LINK_DIR HOW TARGET
 *
 * HOW: cgroup (a path), xdp, tcx (an index), netns (a path), auto (whatever the section says); or
 * without a link: cgroup-bare, cgroup-sole (without BPF_F_ALLOW_MULTI), xdp-bare, xdp-generic-bare,
 * netns-bare (the one it is in). Links are pinned in LINK_DIR under the program's name, unless that
 * is "-". Prints a line "program ID, link ID (0: none)" for each program, and "-" when it is done.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_link.h>

__attribute__((noreturn)) static void fail(const char *what)
{
	fprintf(stderr, "plain_attach: cannot %s: %s\n", what, strerror(errno));
	exit(1);
}

static int opened(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		fail(path);
	return fd;
}

/* A link's descriptor; -1 where it attaches without one. */
static int attach(struct bpf_program *program, const char *how, const char *target)
{
	enum bpf_attach_type type = bpf_program__expected_attach_type(program);
	struct bpf_link *link = NULL;
	int fd = bpf_program__fd(program), err = 0;

	if (!strcmp(how, "cgroup"))
		link = bpf_program__attach_cgroup(program, opened(target));
	else if (!strcmp(how, "netns"))
		link = bpf_program__attach_netns(program, opened(target));
	else if (!strcmp(how, "xdp"))
		link = bpf_program__attach_xdp(program, atoi(target));
	else if (!strcmp(how, "auto"))
		link = bpf_program__attach(program);
	else if (!strcmp(how, "tcx"))
		return bpf_link_create(fd, atoi(target), 46 /* BPF_TCX_INGRESS */, NULL);
	else if (!strcmp(how, "cgroup-bare"))
		err = bpf_prog_attach(fd, opened(target), type, BPF_F_ALLOW_MULTI);
	else if (!strcmp(how, "cgroup-sole"))
		err = bpf_prog_attach(fd, opened(target), type, 0);
	else if (!strcmp(how, "netns-bare"))
		err = bpf_prog_attach(fd, 0, type, 0);
	else if (!strcmp(how, "xdp-bare"))
		err = bpf_xdp_attach(atoi(target), fd, XDP_FLAGS_DRV_MODE, NULL);
	else if (!strcmp(how, "xdp-generic-bare"))
		err = bpf_xdp_attach(atoi(target), fd, XDP_FLAGS_SKB_MODE, NULL);
	else
		fail("understand how to attach");
	if (err)
		fail("attach");
	if (!link)
		return strstr(how, "bare") || strstr(how, "sole") ? -1 : (fail("attach"), -1);
	return bpf_link__fd(link);
}

int main(int argc, char **argv)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .pin_root_path = argv[2]);
	struct bpf_object *object;
	struct bpf_program *program;

	if (argc != 6)
		return 2;
	object = bpf_object__open_file(argv[1], &options);
	if (!object || bpf_object__load(object))
		fail("load the object");
	bpf_object__for_each_program(program, object) {
		struct bpf_prog_info info = {};
		struct bpf_link_info link_info = {};
		__u32 size = sizeof(info), link_size = sizeof(link_info);
		int link = attach(program, argv[4], argv[5]);
		char path[PATH_MAX];

		if (bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &size))
			fail("read the program's info");
		if (link >= 0 && bpf_obj_get_info_by_fd(link, &link_info, &link_size))
			fail("read the link's info");
		if (link >= 0 && strcmp(argv[3], "-")) {
			snprintf(path, sizeof(path), "%s/%s", argv[3], bpf_program__name(program));
			if (bpf_obj_pin(link, path))
				fail("pin the link");
		}
		printf("%u %u\n", info.id, link_info.id);
	}
	puts("-");
	fflush(stdout);
	while (getchar() != EOF)
		;
	return 0;
}
