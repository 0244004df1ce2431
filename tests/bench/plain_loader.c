// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * What a plain libbpf user does: what the benchmarks measure against.
 *
 *   plain_loader attach PIN_ROOT LINK_DIR CGROUP_PARENT OBJECT...
 *       The first time: loads every object, makes the cgroup CGROUP_PARENT/<n> for the n-th, from
 *       0, attaches its programs there and pins the links. Prints how many instructions the
 *       largest program has.
 *
 *   plain_loader reload PIN_ROOT LINK_DIR NAME...
 *       For each directory that is written to standard input, a line each, opens and loads every
 *       object DIRECTORY/NAME against the maps pinned in PIN_ROOT (declared LIBBPF_PIN_BY_NAME, so
 *       libbpf reuses them) and swaps each program into its pinned link. Prints the milliseconds
 *       of that. It stays one process, for libbpf asks only once what the kernel can do.
 *
 *   plain_loader walk MAP...
 *   plain_loader slots MAP...
 *       Counts the entries of pinned maps, key by key, or those of arrays whose slots can be empty,
 *       lookup by lookup. Prints how many, and in how many milliseconds.
 *
 *   plain_loader batch MAP
 *       Reads all entries of a pinned hash, by BPF_MAP_LOOKUP_BATCH. Prints the same.
 *
 * A link is pinned at LINK_DIR/<object>/<program>, where <object> is the file's name up to the
 * first dot, for bpffs refuses dots.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

__attribute__((noreturn)) static void fail(const char *what, const char *name, int error)
{
	fprintf(stderr, "plain_loader: cannot %s %s: %s\n", what, name, strerror(error));
	exit(1);
}

__attribute__((noreturn)) static void usage(void)
{
	fputs("usage: plain_loader attach PIN_ROOT LINK_DIR CGROUP_PARENT OBJECT...\n"
	      "       plain_loader reload PIN_ROOT LINK_DIR NAME...\n"
	      "       plain_loader walk MAP...\n"
	      "       plain_loader slots MAP...\n"
	      "       plain_loader batch MAP\n"
	      "       plain_loader fill MAP ENTRIES\n",
	      stderr);
	exit(2);
}

/* parent/name: the first `length` bytes of name, or all of it if that is -1. */
static void join(char path[PATH_MAX], const char *parent, const char *name, int length)
{
	if (snprintf(path, PATH_MAX, "%s/%.*s", parent, length, name) >= PATH_MAX)
		fail("use the path of", name, ENAMETOOLONG);
}

/* LINK_DIR/<object>, where the links of an object file are pinned. */
static void links_of(char path[PATH_MAX], const char *link_dir, const char *object_file)
{
	const char *slash = strrchr(object_file, '/');
	const char *name = slash ? slash + 1 : object_file;

	join(path, link_dir, name, (int)strcspn(name, "."));
}

static void make_directory(const char *path)
{
	if (mkdir(path, 0700) && errno != EEXIST)
		fail("make directory", path, errno);
}

static struct bpf_object *load(const char *file, const char *pin_root)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .pin_root_path = pin_root);
	struct bpf_object *object = bpf_object__open_file(file, &options);

	if (!object)
		fail("open", file, errno);
	if (bpf_object__load(object))
		fail("load", file, errno);
	return object;
}

static void swap(struct bpf_object *object, const char *links)
{
	struct bpf_program *program;
	char path[PATH_MAX];

	bpf_object__for_each_program(program, object) {
		int link;

		join(path, links, bpf_program__name(program), -1);
		link = bpf_obj_get(path);
		if (link < 0)
			fail("get link", path, errno);
		if (bpf_link_update(link, bpf_program__fd(program), NULL))
			fail("update link", path, errno);
		close(link);
	}
}

static void attach(struct bpf_object *object, const char *links, const char *cgroup)
{
	int cgroup_fd = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct bpf_program *program;
	char path[PATH_MAX];

	if (cgroup_fd < 0)
		fail("open cgroup", cgroup, errno);
	bpf_object__for_each_program(program, object) {
		int link = bpf_link_create(bpf_program__fd(program), cgroup_fd,
					   bpf_program__expected_attach_type(program), NULL);

		if (link < 0)
			fail("attach", bpf_program__name(program), errno);
		join(path, links, bpf_program__name(program), -1);
		if (bpf_obj_pin(link, path))
			fail("pin link", path, errno);
		close(link);
	}
	close(cgroup_fd);
}

static double now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static void reload_all(const char *directory, const char *pin_root, const char *link_dir,
		       char **names)
{
	for (char **name = names; *name; name++) {
		char file[PATH_MAX], links[PATH_MAX];
		struct bpf_object *object;

		join(file, directory, *name, -1);
		object = load(file, pin_root);
		links_of(links, link_dir, file);
		swap(object, links);
		bpf_object__close(object);
	}
}

static void reload(const char *pin_root, const char *link_dir, char **names)
{
	char directory[PATH_MAX];

	while (fgets(directory, sizeof(directory), stdin)) {
		double start;

		directory[strcspn(directory, "\n")] = '\0';
		start = now_ms();
		reload_all(directory, pin_root, link_dir, names);
		printf("%.3f\n", now_ms() - start);
		fflush(stdout);
	}
}

static size_t largest_program(struct bpf_object *object)
{
	struct bpf_program *program;
	size_t largest = 0;

	bpf_object__for_each_program(program, object)
		if (bpf_program__insn_cnt(program) > largest)
			largest = bpf_program__insn_cnt(program);
	return largest;
}

static void attach_all(const char *pin_root, const char *link_dir, const char *parent, char **files)
{
	size_t largest = 0;

	make_directory(link_dir);
	for (int number = 0; files[number]; number++) {
		struct bpf_object *object = load(files[number], pin_root);
		char links[PATH_MAX], cgroup[PATH_MAX], name[16];

		links_of(links, link_dir, files[number]);
		make_directory(links);
		snprintf(name, sizeof(name), "%d", number);
		join(cgroup, parent, name, -1);
		make_directory(cgroup);
		attach(object, links, cgroup);
		if (largest_program(object) > largest)
			largest = largest_program(object);
		bpf_object__close(object);
	}
	printf("%zu\n", largest);
}

static unsigned long walk(const char *path)
{
	char keys[2][512];
	unsigned long count = 0;
	int fd = bpf_obj_get(path);

	if (fd < 0)
		fail("get map", path, errno);
	while (!bpf_map_get_next_key(fd, count ? keys[count % 2] : NULL, keys[(count + 1) % 2]))
		count++;
	if (errno != ENOENT)
		fail("walk map", path, errno);
	close(fd);
	return count;
}

/* All of a map that is not per CPU, by batches as large as fit into 256 KiB. */
static unsigned long batch(const char *path)
{
	struct bpf_map_info info = {};
	__u32 token, room, size = sizeof(info);
	unsigned long count = 0;
	char *keys, *values;
	int fd = bpf_obj_get(path), err;

	if (fd < 0 || bpf_obj_get_info_by_fd(fd, &info, &size))
		fail("get map", path, errno);
	room = (256 << 10) / (info.key_size + info.value_size);
	keys = malloc(room * info.key_size);
	values = malloc(room * info.value_size);
	if (!keys || !values)
		fail("read map", path, ENOMEM);
	do {
		__u32 read = room;

		err = bpf_map_lookup_batch(fd, count ? &token : NULL, &token, keys, values, &read,
					   NULL);
		if (err && err != -ENOENT)
			fail("read map", path, -err);
		count += read;
	} while (!err);
	close(fd);
	free(keys);
	free(values);
	return count;
}

/* Puts so many entries into a map with keys of 4 bytes and values of 8. */
static void fill(const char *path, unsigned long entries)
{
	static __u32 keys[1 << 14];
	static __u64 values[1 << 14];
	int fd = bpf_obj_get(path), err;

	if (fd < 0)
		fail("get map", path, errno);
	for (unsigned long done = 0; done < entries;) {
		__u32 count = entries - done < 1 << 14 ? entries - done : 1 << 14;

		for (__u32 i = 0; i < count; i++)
			keys[i] = done + i;
		err = bpf_map_update_batch(fd, keys, values, &count, NULL);
		if (err)
			fail("fill map", path, -err);
		done += count;
	}
	close(fd);
}

/* An array has every key: only a lookup tells which slots are in use. */
static unsigned long filled_slots(const char *path)
{
	unsigned long count = 0;
	__u32 key = 0, value;
	int fd = bpf_obj_get(path);

	if (fd < 0)
		fail("get map", path, errno);
	do
		count += !bpf_map_lookup_elem(fd, &key, &value);
	while (!bpf_map_get_next_key(fd, &key, &key));
	close(fd);
	return count;
}

int main(int argc, char **argv)
{
	if (argc >= 6 && !strcmp(argv[1], "attach")) {
		attach_all(argv[2], argv[3], argv[4], argv + 5);
	} else if (argc >= 5 && !strcmp(argv[1], "reload")) {
		reload(argv[2], argv[3], argv + 4);
	} else if (argc == 3 && !strcmp(argv[1], "batch")) {
		double start = now_ms();
		unsigned long count = batch(argv[2]);

		printf("%lu %.3f\n", count, now_ms() - start);
	} else if (argc == 4 && !strcmp(argv[1], "fill")) {
		fill(argv[2], strtoul(argv[3], NULL, 10));
	} else if (argc >= 3 && (!strcmp(argv[1], "walk") || !strcmp(argv[1], "slots"))) {
		unsigned long (*count_one)(const char *) =
			strcmp(argv[1], "walk") ? filled_slots : walk;
		double start = now_ms();
		unsigned long count = 0;

		for (char **map = argv + 2; *map; map++)
			count += count_one(*map);
		printf("%lu %.3f\n", count, now_ms() - start);
	} else {
		usage();
	}
	return 0;
}
