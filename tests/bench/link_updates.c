// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * The least that swapping programs can cost: one BPF_LINK_UPDATE after the other.
 *
 *   link_updates held LINK_DIR OBJECT_A OBJECT_B
 *       Loads both objects, and opens every link that is pinned at LINK_DIR/<program>/. For each line
 *       of standard input, gives them all the program of the other object that has the name of their
 *       directory, if it is the one they run (BPF_F_REPLACE), and prints the milliseconds of that.
 *
 *   link_updates whole LINK_DIR OBJECT_A OBJECT_B
 *       As a program does it that has nothing at hand: each time it loads the object, too, and opens
 *       and closes every link.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define LINKS_MAX 100000

static int links[LINKS_MAX], programs[LINKS_MAX][2], count;

__attribute__((noreturn)) static void fail(const char *what, const char *name, int error)
{
	fprintf(stderr, "link_updates: cannot %s %s: %s\n", what, name, strerror(error));
	exit(1);
}

static struct bpf_object *load(const char *file)
{
	struct bpf_object *object = bpf_object__open(file);
	struct bpf_program *program;
	struct bpf_map *map;

	if (!object)
		fail("open", file, errno);
	bpf_object__for_each_program(program, object)	/* libbpf 1.1 does not know "tcx" */
		if (!strncmp(bpf_program__section_name(program), "tcx", 3))
			bpf_program__set_type(program, BPF_PROG_TYPE_SCHED_CLS);
	bpf_object__for_each_map(map, object)
		bpf_map__set_pin_path(map, NULL);
	if (bpf_object__load(object))
		fail("load", file, errno);
	return object;
}

static int program_fd(struct bpf_object *object, const char *name)
{
	struct bpf_program *program = bpf_object__find_program_by_name(object, name);

	if (!program)
		fail("find program", name, ENOENT);
	return bpf_program__fd(program);
}

static void open_links(const char *directory, const char *name, struct bpf_object *both[2])
{
	char path[PATH_MAX];
	struct dirent *entry;
	DIR *dir = opendir(directory);

	if (!dir)
		fail("read", directory, errno);
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
		links[count] = bpf_obj_get(path);
		if (links[count] < 0)
			fail("open", path, errno);
		for (int i = 0; i < 2; i++)
			programs[count][i] = program_fd(both[i], name);
		if (bpf_link_update(links[count], programs[count][0], NULL))
			fail("update", path, errno);
		if (++count == LINKS_MAX)
			fail("hold", directory, E2BIG);
	}
	closedir(dir);
}

static double milliseconds(const struct timespec *begin)
{
	struct timespec end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	return (end.tv_sec - begin->tv_sec) * 1e3 + (end.tv_nsec - begin->tv_nsec) / 1e6;
}

static double update_held(int now)
{
	LIBBPF_OPTS(bpf_link_update_opts, opts, .flags = BPF_F_REPLACE);
	struct timespec begin;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int i = 0; i < count; i++) {
		opts.old_prog_fd = programs[i][!now];
		if (bpf_link_update(links[i], programs[i][now], &opts))
			fail("update", "a link", errno);
	}
	return milliseconds(&begin);
}

static double update_whole(const char *link_dir, const char *file, struct bpf_object **loaded)
{
	struct bpf_object *both[2], *before = *loaded;
	struct bpf_program *program;
	struct timespec begin;
	char path[PATH_MAX];

	clock_gettime(CLOCK_MONOTONIC, &begin);
	both[0] = both[1] = *loaded = load(file);
	count = 0;
	bpf_object__for_each_program(program, both[0]) {
		snprintf(path, sizeof(path), "%s/%s", link_dir, bpf_program__name(program));
		open_links(path, bpf_program__name(program), both);
	}
	for (int i = 0; i < count; i++)
		close(links[i]);
	bpf_object__close(before);
	return milliseconds(&begin);
}

int main(int argc, char **argv)
{
	struct bpf_object *both[2], *loaded = NULL;
	char path[PATH_MAX], line[16];
	struct bpf_program *program;
	int now = 0, whole;

	if (argc != 5) {
		fputs("usage: link_updates held|whole LINK_DIR OBJECT_A OBJECT_B\n", stderr);
		return 2;
	}
	whole = !strcmp(argv[1], "whole");
	for (int i = 0; i < 2 && !whole; i++)
		both[i] = load(argv[3 + i]);
	if (!whole)
		bpf_object__for_each_program(program, both[0]) {
			snprintf(path, sizeof(path), "%s/%s", argv[2], bpf_program__name(program));
			open_links(path, bpf_program__name(program), both);
		}
	while (fgets(line, sizeof(line), stdin)) {
		double took;

		now = !now;
		took = whole ? update_whole(argv[2], argv[3 + now], &loaded) : update_held(now);
		printf("%f %d\n", took, count);
		fflush(stdout);
	}
	return 0;
}
