// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <sys/inotify.h>

int keeper_watch_open(void)
{
	int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int keeper_watch_add(int fd, const char *directory)
{
	int number = inotify_add_watch(fd, directory, IN_CREATE | IN_DELETE | IN_MOVED_FROM |
				       IN_MOVED_TO | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF |
				       IN_ONLYDIR);

	return number < 0 ? -errno : number;
}

int keeper_watch_remove(int fd, int number)
{
	return inotify_rm_watch(fd, number) ? -errno : 0;
}
