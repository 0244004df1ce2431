// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <limits.h>
#include <sys/stat.h>

static bool is_trusted(const struct stat *found, bool directory, uint32_t owner,
		       uint32_t former_owner)
{
	bool own = found->st_uid == 0 || found->st_uid == geteuid();

	if (S_ISLNK(found->st_mode))
		return false;
	if (directory)
		return own && (!(found->st_mode & S_IWOTH) || found->st_mode & S_ISVTX);
	return own || found->st_uid == owner || found->st_uid == former_owner;
}

/* A descriptor of what is at the path, which does not open it. */
static int trusted_pin(const char *path, uint32_t root_size, uint32_t owner, uint32_t former_owner,
		       struct keeper_kept_map *out)
{
	char copy[PATH_MAX], *name = copy, *slash;
	int at = AT_FDCWD, fd, err = 0;
	struct stat found;

	if (strlen(path) >= sizeof(copy))
		return -ENAMETOOLONG;
	strcpy(copy, path);
	slash = strchr(copy + root_size + 1, '/');
	for (;;) {
		if (slash)
			*slash = '\0';
		fd = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0 || fstat(fd, &found))
			err = -errno;
		if (at != AT_FDCWD)
			close(at);
		if (fd < 0)
			return err;
		out->uid = found.st_uid;
		out->gid = found.st_gid;
		out->mode = found.st_mode;
		if (!err && !is_trusted(&found, slash, owner, former_owner)) {
			out->refused = name + strlen(name) - copy;
			err = -EPERM;
		}
		if (err) {
			close(fd);
			return err;
		}
		if (!slash)
			return fd;
		at = fd;
		name = slash + 1;
		slash = strchr(name, '/');
	}
}

int keeper_kept_map(const char *path, uint32_t root_size, uint32_t owner, uint32_t former_owner,
		    struct keeper_kept_map *found)
{
	int pin, fd, err = 0;
	char link[32];

	found->refused = 0;
	found->kind = KEEPER_OTHER;
	pin = trusted_pin(path, root_size, owner, former_owner, found);
	if (pin < 0)
		return pin;
	/* The very inode that was looked at, whatever stands at the path by now. */
	snprintf(link, sizeof(link), "/proc/self/fd/%d", pin);
	fd = bpf_obj_get(link);
	close(pin);
	if (fd < 0)	/* without /proc: that nothing is pinned would have been found above */
		return fd == -ENOENT ? -ENODEV : fd;
	found->kind = keeper_kind(fd);
	if (found->kind == KEEPER_MAP)
		err = keeper_map_info(fd, &found->info);
	close(fd);
	return err;
}
