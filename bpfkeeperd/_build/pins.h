/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/* The pin of a kept map, looked into after a look at whose it is. */

struct keeper_kept_map {
	struct keeper_map_info info;
	uint32_t uid, gid, mode;	/* of the pin, or of what is refused; mode with its type */
	uint32_t refused;		/* bytes of the path that name what is refused; 0: nothing is */
	uint32_t kind;			/* enum keeper_kind; there is info of a map only */
};

/*
 * Tells of the map that is pinned at a path. Below its first root_size bytes no symbolic link is
 * followed; the pin has to belong to root, to this process's user, to owner or to former_owner, and
 * directories on the way to one of the first two, and not everybody may be able to exchange what is
 * in them. What does not is not opened: -EPERM, and refused is set.
 */
int keeper_kept_map(const char *path, uint32_t root_size, uint32_t owner, uint32_t former_owner,
		    struct keeper_kept_map *found);
