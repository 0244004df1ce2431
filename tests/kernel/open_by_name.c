// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* A plain libbpf program: loads an object with a pin root and prints the ID of a map it then has. */
#include <stdio.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>

int main(int argc, char **argv)
{
	LIBBPF_OPTS(bpf_object_open_opts, opts, .pin_root_path = argv[2]);
	struct bpf_object *object = bpf_object__open_file(argv[1], &opts);
	struct bpf_map_info info = {};
	__u32 size = sizeof(info);

	if (argc != 4 || !object || bpf_object__load(object))
		return 1;
	if (bpf_obj_get_info_by_fd(bpf_object__find_map_fd_by_name(object, argv[3]), &info, &size))
		return 1;
	printf("%u\n", info.id);
	bpf_object__close(object);
	return 0;
}
