// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A reader that follows a map's name: when another map takes the name of the pin, it goes on with
 * that one. Ring buffers are read; of every other map it says which one it is.
 *
 *	cc -O2 -Wall follow.c -o follow -lbpf
 *	./follow /sys/fs/bpf/execs-example/ring
 *
 * bpffs tells inotify of whatever happens to a pin. What it cannot tell, another bpffs mounted at its
 * place, /proc/self/mountinfo does. Neither says which map is there now: after each event the pin is
 * opened anew, and its ID says whether that is another map.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>
#include <sys/inotify.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define EVENTS (IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF)

/* ---- which map is it now ---- */

/*
 * Watches the directories above the pin, from the top: one that is made after its turn is an event
 * of the one above it. False where one cannot be watched: then look every second.
 */
static int watch(int inotify, const char *path)
{
	char directory[PATH_MAX];
	const char *slash = path;

	while ((slash = strchr(slash + 1, '/'))) {
		snprintf(directory, sizeof(directory), "%.*s", (int)(slash - path), path);
		if (inotify_add_watch(inotify, directory, EVENTS | IN_ONLYDIR) < 0)
			return errno == ENOENT;
	}
	return 1;
}

/* The map that has the name now: its descriptor, or -1. */
static int open_pin(const char *path, struct bpf_map_info *info)
{
	__u32 size = sizeof(*info);
	int fd = bpf_obj_get(path);

	memset(info, 0, size);
	if (fd >= 0 && bpf_obj_get_info_by_fd(fd, info, &size)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* ---- what is done with it ---- */

struct reader {
	__u32 id; /* 0: there is no map */
	int fd;
	struct ring_buffer *ring, *former;
};

static int on_event(void *id, void *data, size_t size)
{
	const unsigned char *bytes = data;

	(void)id;
	printf("event ");
	for (size_t i = 0; i < size && i < 16; i++)
		printf("%02x", bytes[i]);
	printf("\n");
	return 0;
}

/*
 * Programs that still run with the former ring may write to it after the new one took its name, and
 * one that somebody else pinned is not yet used by any: the former ring is read until the next.
 */
static void go_on_with(struct reader *reader, int fd, const struct bpf_map_info *info)
{
	if (reader->former) {
		ring_buffer__consume(reader->former);
		ring_buffer__free(reader->former);
	}
	if (reader->fd >= 0)
		close(reader->fd);
	reader->former = reader->ring;
	reader->ring = NULL;
	reader->id = info->id;
	reader->fd = fd;
	if (info->type == BPF_MAP_TYPE_RINGBUF)
		reader->ring = ring_buffer__new(fd, on_event, NULL, NULL);
	printf("map %u: type %u, %u entries at most\n", info->id, info->type, info->max_entries);
}

static void look(struct reader *reader, const char *path)
{
	struct bpf_map_info info;
	int fd = open_pin(path, &info);

	if (fd >= 0 && info.id != reader->id)
		go_on_with(reader, fd, &info);
	else if (fd >= 0) /* the same: a restored pin, or another name's event */
		close(fd);
	/* A pin that is gone may come back: the map stays with who holds it. */
}

int main(int argc, char **argv)
{
	struct reader reader = { .fd = -1 };
	char events[4096];
	struct pollfd fds[4] = {
		{ .fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), .events = POLLIN },
		{ .fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC), .events = POLLPRI },
	};

	if (argc != 2 || argv[1][0] != '/') {
		fprintf(stderr, "usage: follow /PATH/OF/PIN\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (;;) {
		/* First watch, then look: what happens after the look wakes poll(). */
		int watched = watch(fds[0].fd, argv[1]);

		look(&reader, argv[1]);
		fds[2] = (struct pollfd){ .fd = -1, .events = POLLIN };
		fds[3] = fds[2];
		if (reader.ring)
			fds[2].fd = ring_buffer__epoll_fd(reader.ring);
		if (reader.former)
			fds[3].fd = ring_buffer__epoll_fd(reader.former);
		if (poll(fds, 4, watched ? -1 : 1000) < 0 && errno != EINTR)
			return 1;
		while (read(fds[0].fd, events, sizeof(events)) > 0)
			;
		if (reader.former)
			ring_buffer__consume(reader.former);
		if (reader.ring)
			ring_buffer__consume(reader.ring);
	}
}
