// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <errno.h>
#include <unistd.h>
#include <linux/bpf.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

/* Kinds of BTF that not every compiler makes, and not every kernel takes. */
static int features_add_kinds(struct btf *btf)
{
	int number = btf__find_by_name_kind(btf, "int", BTF_KIND_INT);
	int variable = btf__find_by_name_kind(btf, "variable", BTF_KIND_VAR);
	int err;

	if (number < 0 || variable < 0)
		return -ENOENT;
	err = btf__add_float(btf, "float", 4);
	err = err < 0 ? err : btf__add_decl_tag(btf, "tag", variable, -1);
	err = err < 0 ? err : btf__add_type_tag(btf, "tag", number);
	err = err < 0 ? err : btf__add_enum64(btf, "large", 8, false);
	err = err < 0 ? err : btf__add_enum64_value(btf, "LARGE", 1ull << 40);
	return err < 0 ? err : 0;
}

/* 1 when the kernel has BTF with every type as it is here; libbpf replaces what it takes for unknown. */
static int features_has_btf(const struct btf *btf, int fd)
{
	char data[16 << 10];
	struct bpf_btf_info info = { .btf = (__u64)(unsigned long)data, .btf_size = sizeof(data) };
	__u32 size = sizeof(info), count = btf__type_cnt(btf);
	struct btf *loaded;
	int err = bpf_obj_get_info_by_fd(fd, &info, &size), same = 1;

	if (err)
		return err;
	if (info.btf_size > sizeof(data))
		return -E2BIG;
	loaded = btf__new(data, info.btf_size);
	if (!loaded)
		return -errno;
	same = btf__type_cnt(loaded) == count;
	for (__u32 id = 1; same && id < count; id++)
		same = btf__type_by_id(loaded, id)->info == btf__type_by_id(btf, id)->info;
	btf__free(loaded);
	return same;
}

/* As above, or where the kernel itself refuses such BTF. */
static int features_btf_is_right(const struct btf *btf, int fd)
{
	int same = fd < 0 ? 0 : features_has_btf(btf, fd);
	const void *data;
	__u32 size;

	if (same)
		return same;
	data = btf__raw_data(btf, &size);
	if (!data)
		return -ENOMEM;
	fd = bpf_btf_load(data, size, NULL);
	if (fd < 0)
		return fd == -EINVAL ? 1 : fd;
	close(fd);
	return 0;
}

static int features_judge(struct bpf_object *object, const char **missing)
{
	int program_fd = bpf_program__fd(bpf_object__find_program_by_name(object, "uses_variable"));
	struct bpf_map *map, *constants = NULL, *variables = NULL;
	struct bpf_prog_info program = {};
	struct bpf_map_info data = {};
	__u32 size = sizeof(program);
	int err = bpf_obj_get_info_by_fd(program_fd, &program, &size);

	for (map = bpf_object__next_map(object, NULL); map; map = bpf_object__next_map(object, map)) {
		if (strstr(bpf_map__name(map), ".rodata"))
			constants = map;
		else if (strstr(bpf_map__name(map), ".data"))
			variables = map;
	}
	size = sizeof(data);
	err = err ? err : bpf_obj_get_info_by_fd(bpf_map__fd(variables), &data, &size);
	if (err)
		return err;
	err = features_btf_is_right(bpf_object__btf(object), bpf_object__btf_fd(object));
	if (err < 0)
		return err;
	if (!err)
		*missing = "all kinds of BTF";
	else if (!program.name[0])
		*missing = "names of programs";
	else if (bpf_object__btf_fd(object) >= 0 && !program.nr_func_info)
		*missing = "BTF of functions";
	else if (!(data.map_flags & BPF_F_MMAPABLE))
		*missing = "mmap(2) of arrays";
	else if (program.nr_map_ids < 2 && !bpf_prog_bind_map(program_fd, bpf_map__fd(constants), NULL))
		*missing = "maps bound to programs";
	return 0;
}

/*
 * 1 when a program of such a type can be loaded; 0 without CONFIG_CGROUP_BPF, or for want of
 * CAP_NET_ADMIN, without which libbpf does not learn it.
 */
static int features_takes(uint32_t type, uint32_t attach_type, int returned)
{
	int fd = keeper_probe_load(type, attach_type, 0, NULL, returned);

	if (fd < 0)
		return fd == -EINVAL || fd == -EPERM ? 0 : fd;
	close(fd);
	return 1;
}

int keeper_learn_features(const void *data, size_t size, const char **missing)
{
	LIBBPF_OPTS(bpf_object_open_opts, opts, .object_name = "features");
	struct bpf_object *object;
	int err, takes;

	*missing = NULL;
	/* With the second libbpf asks for attach types. */
	takes = features_takes(BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_EGRESS, 2);
	if (takes > 0)
		takes = features_takes(BPF_PROG_TYPE_CGROUP_SOCK, BPF_CGROUP_INET_SOCK_CREATE, 1);
	if (takes < 0)
		return takes;
	object = bpf_object__open_mem(data, size, &opts);
	if (!object)
		return -errno;
	bpf_program__set_autoload(bpf_object__find_program_by_name(object, "has_attach_type"), takes > 0);
	err = features_add_kinds(bpf_object__btf(object));
	if (!err) {
		*missing = "what this takes";
		err = bpf_object__load(object);
		*missing = err ? *missing : NULL;
	}
	err = err ? err : features_judge(object, missing);
	bpf_object__close(object);
	return err;
}
