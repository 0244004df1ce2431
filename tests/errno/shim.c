// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Stands between a process and libc (LD_PRELOAD): counts the calls of bpf(2) and those on paths below
 * a directory, and has the n-th of them fail with an errno without making it. What it does not fail the
 * kernel does. It counts while it is armed, from all threads alike.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#define CALLS_MAX 8192

struct call {
	char name[16];	/* of the function; "bpf" for bpf(2) */
	int command;	/* of bpf(2) */
	int failed;
	char subject[240];	/* a path, or the name of what is made */
};

struct call shim_calls[CALLS_MAX];
atomic_int shim_count;
static char below[PATH_MAX];
static atomic_int armed;
static int first, last, number;

#define REAL(function) ((__typeof__(&function))dlsym(RTLD_NEXT, #function))

/* Calls from the first to the last (counted from 0) fail; none when the first is negative. */
void shim_arm(const char *directory, int from, int to, int with)
{
	snprintf(below, sizeof(below), "%s", directory);
	first = from;
	last = to;
	number = with;
	shim_count = 0;
	armed = 1;
}

void shim_disarm(void)
{
	armed = 0;
}

/* Counts a call; whether it is to fail, for which errno is set then. */
static int fails(const char *name, int command, const char *subject)
{
	int place = atomic_fetch_add(&shim_count, 1);
	int failed = first >= 0 && place >= first && place <= last;

	if (place < CALLS_MAX) {
		struct call *call = &shim_calls[place];

		snprintf(call->name, sizeof(call->name), "%s", name);
		snprintf(call->subject, sizeof(call->subject), "%s", subject);
		call->command = command;
		call->failed = failed;
	}
	if (failed)
		errno = number;
	return failed;
}

static int is_below(const char *path)
{
	size_t size = strlen(below);

	return path && !strncmp(path, below, size) && (!path[size] || path[size] == '/');
}

/* Of what a link of /proc/self/fd leads to; asked for without libc. */
static int link_fails(const char *name, const char *link, const char *more)
{
	char path[PATH_MAX];
	ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof(path) - 1);

	if (size < 0)
		return 0;
	snprintf(path + size, sizeof(path) - size, "%s%s", *more ? "/" : "", more);
	return is_below(path) && fails(name, 0, path);
}

static int fd_fails(const char *name, int fd)
{
	char link[32];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return armed && link_fails(name, link, "");
}

static int at_fails(const char *name, int at, const char *path)
{
	char link[32];

	if (!armed || !path)
		return 0;
	if (!strncmp(path, "/proc/self/fd/", 14))
		return link_fails(name, path, "");
	if (*path == '/' || at == AT_FDCWD)
		return is_below(path) && fails(name, 0, path);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", at);
	return link_fails(name, link, path);
}

static const char *named(int command, const union bpf_attr *attr)
{
	switch (command) {
	case BPF_MAP_CREATE:
		return attr->map_name;
	case BPF_PROG_LOAD:
		return attr->prog_name;
	case BPF_OBJ_PIN:
	case BPF_OBJ_GET:
		return (const char *)(unsigned long)attr->pathname;
	}
	return "";
}

long syscall(long call, ...)
{
	long a, b, c, d, e, f;
	va_list list;

	va_start(list, call);
	a = va_arg(list, long);
	b = va_arg(list, long);
	c = va_arg(list, long);
	d = va_arg(list, long);
	e = va_arg(list, long);
	f = va_arg(list, long);
	va_end(list);
	if (call == SYS_bpf && armed && fails("bpf", a, named(a, (const union bpf_attr *)b)))
		return -1;
	return REAL(syscall)(call, a, b, c, d, e, f);
}

#define ON_PATH(function, parameters, at, path, arguments)	\
int function parameters						\
{								\
	if (at_fails(#function, at, path))			\
		return -1;					\
	return REAL(function) arguments;			\
}

ON_PATH(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_PATH(mkdirat, (int at, const char *path, mode_t mode), at, path, (at, path, mode))
ON_PATH(rmdir, (const char *path), AT_FDCWD, path, (path))
ON_PATH(unlink, (const char *path), AT_FDCWD, path, (path))
ON_PATH(unlinkat, (int at, const char *path, int flags), at, path, (at, path, flags))
ON_PATH(rename, (const char *from, const char *to), AT_FDCWD, from, (from, to))
ON_PATH(renameat, (int at, const char *from, int to_at, const char *to), at, from,
	(at, from, to_at, to))
ON_PATH(renameat2, (int at, const char *from, int to_at, const char *to, unsigned int flags), at,
	from, (at, from, to_at, to, flags))
ON_PATH(link, (const char *from, const char *to), AT_FDCWD, from, (from, to))
ON_PATH(linkat, (int at, const char *from, int to_at, const char *to, int flags), at, from,
	(at, from, to_at, to, flags))
ON_PATH(symlink, (const char *from, const char *to), AT_FDCWD, to, (from, to))
ON_PATH(chmod, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_PATH(fchmodat, (int at, const char *path, mode_t mode, int flags), at, path,
	(at, path, mode, flags))
ON_PATH(chown, (const char *path, uid_t user, gid_t group), AT_FDCWD, path, (path, user, group))
ON_PATH(lchown, (const char *path, uid_t user, gid_t group), AT_FDCWD, path, (path, user, group))
ON_PATH(fchownat, (int at, const char *path, uid_t user, gid_t group, int flags), at, path,
	(at, path, user, group, flags))
ON_PATH(utimensat, (int at, const char *path, const struct timespec times[2], int flags), at, path,
	(at, path, times, flags))
ON_PATH(stat64, (const char *path, struct stat64 *found), AT_FDCWD, path, (path, found))
ON_PATH(lstat64, (const char *path, struct stat64 *found), AT_FDCWD, path, (path, found))
ON_PATH(fstatat64, (int at, const char *path, struct stat64 *found, int flags), at, path,
	(at, path, found, flags))
ON_PATH(statfs64, (const char *path, struct statfs64 *found), AT_FDCWD, path, (path, found))

int fchmod(int fd, mode_t mode)
{
	return fd_fails("fchmod", fd) ? -1 : REAL(fchmod)(fd, mode);
}

int fchown(int fd, uid_t user, gid_t group)
{
	return fd_fails("fchown", fd) ? -1 : REAL(fchown)(fd, user, group);
}

int fstat64(int fd, struct stat64 *found)
{
	return fd_fails("fstat64", fd) ? -1 : REAL(fstat64)(fd, found);
}

int fstatfs64(int fd, struct statfs64 *found)
{
	return fd_fails("fstatfs64", fd) ? -1 : REAL(fstatfs64)(fd, found);
}

int flock(int fd, int operation)
{
	return fd_fails("flock", fd) ? -1 : REAL(flock)(fd, operation);
}

static mode_t mode_of(int flags, va_list list)
{
	return flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;
}

int open64(const char *path, int flags, ...)
{
	va_list list;
	mode_t mode;

	va_start(list, flags);
	mode = mode_of(flags, list);
	va_end(list);
	return at_fails("open", AT_FDCWD, path) ? -1 : REAL(open64)(path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...)
{
	va_list list;
	mode_t mode;

	va_start(list, flags);
	mode = mode_of(flags, list);
	va_end(list);
	return at_fails("openat", at, path) ? -1 : REAL(openat64)(at, path, flags, mode);
}

DIR *opendir(const char *path)
{
	return at_fails("opendir", AT_FDCWD, path) ? NULL : REAL(opendir)(path);
}

/* One call of getdents(2) gives the entries, another one none: those two are what can fail. */
struct dirent64 *readdir64(DIR *directory)
{
	int begins = telldir(directory) == 0, before = errno;
	struct dirent64 *entry;

	if (begins && fd_fails("getdents", dirfd(directory)))
		return NULL;
	errno = before;
	entry = REAL(readdir64)(directory);
	if (!entry && fd_fails("getdents", dirfd(directory)))
		return NULL;
	return entry;
}
