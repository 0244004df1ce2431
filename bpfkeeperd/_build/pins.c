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

int keeper_open_kept(const char *path, uint32_t root_size, uint32_t owner, uint32_t former_owner,
		     struct keeper_kept_pin *pin)
{
	char copy[PATH_MAX], link[32], *name = copy, *slash;
	int at = AT_FDCWD, fd, err = 0;
	struct stat found;

	pin->refused = 0;
	if (strlen(path) >= sizeof(copy))
		return -ENAMETOOLONG;
	strcpy(copy, path);
	slash = strchr(copy + root_size + 1, '/');
	for (;;) {
		if (slash)
			*slash = '\0';
		fd = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0)
			err = -errno;
		if (at != AT_FDCWD)
			close(at);
		if (fd < 0)
			return err;
		if (fstat(fd, &found))
			err = -errno;
		else if (!is_trusted(&found, slash, owner, former_owner))
			err = -EPERM;
		pin->uid = found.st_uid;
		pin->gid = found.st_gid;
		pin->mode = found.st_mode;
		if (err || !slash)
			break;
		at = fd;
		name = slash + 1;
		slash = strchr(name, '/');
	}
	if (err == -EPERM)
		pin->refused = name + strlen(name) - copy;
	if (!err) {
		/* The very inode that was looked at, whatever stands at the path by now. */
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		err = bpf_obj_get(link);
		if (err == -ENOENT)	/* there is no /proc; that nothing is pinned was asked before */
			err = -ENODEV;
	}
	close(fd);
	return err;
}

int keeper_link(const char *from, const char *to)
{
	return link(from, to) ? -errno : 0;
}
