// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/vfs.h>
#include <linux/bpf.h>
#include <linux/magic.h>

#define LOG_MAX (1u << 20)
#define LAYOUT_MAX (64u << 10)
#define LAYOUT_DEPTH 16

/* ---- text that grows ---- */

struct buffer {
	char *data;
	size_t size, capacity;
};

static int buffer_append(struct buffer *b, const void *data, size_t size)
{
	if (b->size + size + 1 > b->capacity) {
		size_t capacity = (b->size + size + 1) * 2;
		char *grown = realloc(b->data, capacity);

		if (!grown)
			return -ENOMEM;
		b->data = grown;
		b->capacity = capacity;
	}
	memcpy(b->data + b->size, data, size);
	b->size += size;
	b->data[b->size] = '\0';
	return 0;
}

/* ---- libbpf's messages ---- */

static __thread struct buffer log_buffer;

static int log_capture(enum libbpf_print_level level, const char *format, va_list args)
{
	va_list again;
	char *text;
	int size;

	if (level == LIBBPF_DEBUG || log_buffer.size >= LOG_MAX)
		return 0;
	va_copy(again, args);
	size = vasprintf(&text, format, again);
	va_end(again);
	if (size < 0)
		return 0;
	buffer_append(&log_buffer, text,
		      log_buffer.size + size > LOG_MAX ? LOG_MAX - log_buffer.size : size);
	free(text);
	return size;
}

void keeper_init(void)
{
	libbpf_set_print(log_capture);
}

void keeper_log_clear(void)
{
	log_buffer.size = 0;
	if (log_buffer.data)
		log_buffer.data[0] = '\0';
}

const char *keeper_log(void)
{
	return log_buffer.data ? log_buffer.data : "";
}

/* ---- what the kernel says of a descriptor ---- */

int keeper_kind(int fd)
{
	char path[32], link[32];
	ssize_t size;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	size = readlink(path, link, sizeof(link) - 1);
	if (size < 0)
		return -errno;
	link[size] = '\0';
	if (!strcmp(link, "anon_inode:bpf-map"))
		return KEEPER_MAP;
	if (!strcmp(link, "anon_inode:bpf-prog"))
		return KEEPER_PROG;
	if (!strcmp(link, "anon_inode:bpf_link") || !strcmp(link, "anon_inode:bpf-link"))
		return KEEPER_LINK;
	return KEEPER_OTHER;
}

int keeper_map_info(int fd, struct keeper_map_info *out)
{
	struct bpf_map_info info = {};
	__u32 size = sizeof(info);
	int err = bpf_obj_get_info_by_fd(fd, &info, &size);

	if (err)
		return err;
	*out = (struct keeper_map_info){
		.id = info.id,
		.type = info.type,
		.key_size = info.key_size,
		.value_size = info.value_size,
		.max_entries = info.max_entries,
		.flags = info.map_flags,
		.btf_id = info.btf_id,
		.btf_key_type_id = info.btf_key_type_id,
		.btf_value_type_id = info.btf_value_type_id,
		.map_extra = info.map_extra,
	};
	memcpy(out->name, info.name, sizeof(out->name));
	return 0;
}

int keeper_prog_info(int fd, struct keeper_prog_info *out)
{
	struct bpf_prog_info info = {};
	__u32 size = sizeof(info);
	int err;

	info.nr_map_ids = 64;
	info.map_ids = (__u64)(unsigned long)out->map_ids;
	err = bpf_obj_get_info_by_fd(fd, &info, &size);
	if (err)
		return err;
	out->id = info.id;
	out->type = info.type;
	memcpy(out->name, info.name, sizeof(out->name));
	memcpy(out->tag, info.tag, sizeof(out->tag));
	out->nr_map_ids = info.nr_map_ids > 64 ? 64 : info.nr_map_ids;
	return 0;
}

/* ---- making and changing ---- */

int keeper_map_create(const struct keeper_map_definition *map)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = map->flags,
		    .map_extra = map->map_extra, .numa_node = map->numa_node,
		    .inner_map_fd = map->inner_fd, .btf_fd = map->btf_fd,
		    .btf_key_type_id = map->btf_key_type_id,
		    .btf_value_type_id = map->btf_value_type_id);

	return bpf_map_create(map->type, map->name, map->key_size, map->value_size,
			      map->max_entries, &opts);
}

int keeper_prog_load(uint32_t type, const char *name, const void *insns, uint32_t count,
		     uint32_t expected_attach_type, int like_fd)
{
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = expected_attach_type);
	struct bpf_prog_info like = {};
	__u32 size = sizeof(like);
	int fd, btf = -1, err = 0;

	if (like_fd >= 0)
		err = bpf_obj_get_info_by_fd(like_fd, &like, &size);
	if (!err && like.attach_btf_id) {
		/*
		 * EPERM: opening BTF by its ID takes CAP_SYS_ADMIN. Without a descriptor the kernel
		 * takes its own BTF; types of a module have higher numbers than any in that, and are
		 * refused then.
		 */
		btf = bpf_btf_get_fd_by_id(like.attach_btf_obj_id);
		err = btf < 0 && btf != -EPERM ? btf : 0;
		opts.attach_btf_obj_fd = btf < 0 ? 0 : btf;
		opts.attach_btf_id = like.attach_btf_id;
	}
	if (err)
		return err;
	fd = bpf_prog_load(type, name, "Dual BSD/GPL", insns, count, &opts);
	if (btf >= 0)
		close(btf);
	return fd;
}

int keeper_setns(int fd)
{
	return setns(fd, CLONE_NEWNET) ? -errno : 0;
}

int keeper_rename(const char *from, const char *to)
{
	return renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) ? -errno : 0;
}

int64_t keeper_fs_magic(const char *path)
{
	struct statfs fs;

	return statfs(path, &fs) ? -errno : (int64_t)(uint32_t)fs.f_type;
}

int64_t keeper_fs_magic_of(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) ? -errno : (int64_t)(uint32_t)fs.f_type;
}

int keeper_bare_proc(void)
{
	int context = fsopen("proc", FSOPEN_CLOEXEC), proc;

	if (context < 0)
		return -errno;
	if (fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		proc = -errno;
	else if ((proc = fsmount(context, FSMOUNT_CLOEXEC, 0)) < 0)
		proc = -errno;
	close(context);
	return proc;
}

/* ---- the layout of a BTF type ---- */

struct layout {
	const struct btf *btf;
	struct buffer text;
	int depth;
};

static int layout_type(struct layout *l, __u32 id, __u64 offset, const char *path, __u32 bits);

static int layout_leaf(struct layout *l, __u64 offset, __u64 bits, const char *kind,
		       const char *path)
{
	char line[1024];
	int size = snprintf(line, sizeof(line), "%llu:%llu:%s:%s\n", (unsigned long long)offset,
			    (unsigned long long)bits, kind, path);

	if (size < 0 || size >= (int)sizeof(line) || l->text.size + size > LAYOUT_MAX)
		return -E2BIG;
	return buffer_append(&l->text, line, size);
}

static int layout_members(struct layout *l, const struct btf_type *t, __u64 offset,
			  const char *path)
{
	int count = btf_vlen(t);

	for (int i = 0; i < count; i++) {
		const struct btf_member *m = btf_members(t) + i;
		const char *name = btf__name_by_offset(l->btf, m->name_off);
		char below[512];
		int err, size;

		size = snprintf(below, sizeof(below), "%s%s%s", path,
				*path && name && *name ? "." : "", name ? name : "");
		if (size < 0 || size >= (int)sizeof(below))
			return -E2BIG;
		err = layout_type(l, m->type, offset + btf_member_bit_offset(t, i), below,
				  btf_member_bitfield_size(t, i));
		if (err)
			return err;
	}
	return 0;
}

static int layout_array(struct layout *l, const struct btf_type *t, __u64 offset, __u64 size,
			const char *path)
{
	char below[512], kind[32];
	int err, length;

	snprintf(kind, sizeof(kind), "array of %u", btf_array(t)->nelems);
	err = layout_leaf(l, offset, size, kind, path);
	if (err)
		return err;
	length = snprintf(below, sizeof(below), "%s[]", path);
	if (length < 0 || length >= (int)sizeof(below))
		return -E2BIG;
	return layout_type(l, btf_array(t)->type, offset, below, 0);
}

static int layout_resolved(struct layout *l, __s32 id, __u64 offset, const char *path, __u32 bits)
{
	const struct btf_type *t = btf__type_by_id(l->btf, id);
	__s64 bytes = t ? btf__resolve_size(l->btf, id) : -EINVAL;
	__u64 size;

	if (bytes < 0)
		return bytes;
	size = bits ? bits : (__u64)bytes * 8;
	switch (btf_kind(t)) {
	case BTF_KIND_INT:
	case BTF_KIND_ENUM:
	case BTF_KIND_ENUM64:
		return layout_leaf(l, offset, size, "int", path);
	case BTF_KIND_FLOAT:
		return layout_leaf(l, offset, size, "float", path);
	case BTF_KIND_PTR:
		return layout_leaf(l, offset, size, "pointer", path);
	case BTF_KIND_ARRAY:
		return layout_array(l, t, offset, size, path);
	case BTF_KIND_UNION:
		return layout_leaf(l, offset, size, "union", path) ?:
		       layout_members(l, t, offset, path);
	case BTF_KIND_STRUCT:
		return layout_members(l, t, offset, path);
	}
	return -EINVAL;
}

/* Global data: a line for each variable, then those of its type. */
static int layout_section(struct layout *l, const struct btf_type *t)
{
	const struct btf_var_secinfo *place = btf_var_secinfos(t);
	int err = 0;

	for (int i = 0; i < btf_vlen(t) && !err; i++, place++) {
		const struct btf_type *var = btf__type_by_id(l->btf, place->type);
		__u64 offset = (__u64)place->offset * 8;
		const char *name;

		if (!var || !btf_is_var(var))
			return -EINVAL;
		name = btf__name_by_offset(l->btf, var->name_off);
		err = layout_leaf(l, offset, (__u64)place->size * 8, "variable", name ? name : "") ?:
		      layout_type(l, var->type, offset, name ? name : "", 0);
	}
	return err;
}

static int layout_type(struct layout *l, __u32 id, __u64 offset, const char *path, __u32 bits)
{
	__s32 resolved = btf__resolve_type(l->btf, id);
	int err;

	if (resolved < 0)
		return resolved;
	if (++l->depth > LAYOUT_DEPTH)
		return -E2BIG;
	err = layout_resolved(l, resolved, offset, path, bits);
	l->depth--;
	return err;
}

char *keeper_layout(const struct btf *btf, uint32_t type_id)
{
	const struct btf_type *t = btf__type_by_id(btf, type_id);
	struct layout l = { .btf = btf };

	if (t && btf_is_datasec(t) ? layout_section(&l, t) : layout_type(&l, type_id, 0, "", 0)) {
		free(l.text.data);
		return NULL;
	}
	return l.text.data;
}

/* ---- what an object declares ---- */

void keeper_map_spec(const struct bpf_object *obj, struct bpf_map *map,
		     struct keeper_map_spec *spec)
{
	const struct btf *btf = bpf_object__btf(obj);
	__u32 key = bpf_map__btf_key_type_id(map), value = bpf_map__btf_value_type_id(map);

	*spec = (struct keeper_map_spec){
		.name = bpf_map__name(map),
		.key_layout = btf && key ? keeper_layout(btf, key) : NULL,
		.value_layout = btf && value ? keeper_layout(btf, value) : NULL,
		.type = bpf_map__type(map),
		.key_size = bpf_map__key_size(map),
		.value_size = bpf_map__value_size(map),
		.max_entries = bpf_map__max_entries(map),
		.flags = bpf_map__map_flags(map),
		.numa_node = bpf_map__numa_node(map),
		.map_extra = bpf_map__map_extra(map),
		.pinned = bpf_map__pin_path(map) != NULL,
		.internal = bpf_map__is_internal(map),
	};
	bpf_map__set_pin_path(map, NULL);
}

void keeper_program_spec(const struct bpf_program *prog, struct keeper_program_spec *spec)
{
	*spec = (struct keeper_program_spec){
		.name = bpf_program__name(prog),
		.section = bpf_program__section_name(prog),
		.type = bpf_program__type(prog),
		.expected_attach_type = bpf_program__expected_attach_type(prog),
		.autoload = bpf_program__autoload(prog),
	};
}

int keeper_struct_ops_fill(struct bpf_map *map)
{
	struct bpf_link *link = bpf_map__attach_struct_ops(map);
	int fd, err = libbpf_get_error(link);

	/*
	 * libbpf 1.1 writes the map and no more. Later ones make a link of it, which is not wanted
	 * yet; what is registered under the same name already has it refused, after the map is written.
	 */
	if (err)
		return err == -EEXIST || err == -EBUSY ? 0 : err;
	fd = bpf_link__fd(link);
	bpf_link__disconnect(link);
	bpf_link__destroy(link);
	if (fd != bpf_map__fd(map))
		close(fd);
	return 0;
}

/* ---- loading many ---- */

static pthread_mutex_t finished_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t finished_more = PTHREAD_COND_INITIALIZER;

uint32_t keeper_load_some(struct keeper_loads *loads, uint32_t most)
{
	uint32_t done;

	for (done = 0; done < most; done++) {
		uint32_t index = __atomic_fetch_add(&loads->next, 1, __ATOMIC_RELAXED);

		if (index >= loads->count)
			break;
		keeper_log_clear();
		loads->results[index] = bpf_object__load(loads->objects[index]);
		if (loads->results[index] < 0 || *keeper_log())
			loads->logs[index] = strdup(keeper_log());
		pthread_mutex_lock(&finished_lock);
		loads->finished[loads->nr_finished] = index;
		__atomic_store_n(&loads->nr_finished, loads->nr_finished + 1, __ATOMIC_RELEASE);
		pthread_cond_broadcast(&finished_more);
		pthread_mutex_unlock(&finished_lock);
	}
	free(log_buffer.data);	/* the thread may end here, and nothing else frees it */
	log_buffer = (struct buffer){};
	return done;
}

void keeper_load_wait(struct keeper_loads *loads, uint32_t seen)
{
	pthread_mutex_lock(&finished_lock);
	while (loads->nr_finished <= seen)
		pthread_cond_wait(&finished_more, &finished_lock);
	pthread_mutex_unlock(&finished_lock);
}

/* ---- what is pinned ---- */

static int scan_pin(struct buffer *out, const char *path, size_t root_size, int kind)
{
	struct keeper_prog_info prog = {};
	struct keeper_link_info link;
	struct keeper_pin pin = { .kind = kind };
	int fd = bpf_obj_get(path), err = fd < 0 ? fd : 0;

	link.detail[0] = '\0';
	if (fd >= 0 && kind == KEEPER_MAP) {
		struct keeper_map_info map = {};

		/* In directories of others anything may be pinned. */
		pin.kind = keeper_kind(fd) == KEEPER_MAP ? KEEPER_MAP : KEEPER_OTHER;
		if (pin.kind == KEEPER_MAP)
			err = keeper_map_info(fd, &map);
		pin.id = map.id;
		pin.type = map.type;
	} else if (fd >= 0 && kind == KEEPER_PROG) {
		err = keeper_prog_info(fd, &prog);
		pin.id = prog.id;
		pin.type = prog.type;
		pin.nr_map_ids = prog.nr_map_ids;
	} else if (fd >= 0) {
		err = keeper_link_info(fd, &link);
		pin.id = link.id;
		pin.type = link.type;
		pin.prog_id = link.prog_id;
		pin.attach_type = link.attach_type;
		pin.target_id = link.target_id;
	}
	if (fd >= 0)
		close(fd);
	pin.error = -err;
	path += root_size + 1;
	pin.path_size = strlen(path);
	pin.detail_size = strlen(link.detail);
	memcpy(pin.name, prog.name, sizeof(pin.name));
	memcpy(pin.tag, prog.tag, sizeof(pin.tag));
	return buffer_append(out, &pin, sizeof(pin)) ?:
	       buffer_append(out, prog.map_ids, pin.nr_map_ids * sizeof(__u32)) ?:
	       buffer_append(out, path, pin.path_size) ?:
	       buffer_append(out, link.detail, pin.detail_size);
}

static int scan_empty(struct buffer *out, const char *path, size_t root_size)
{
	struct keeper_pin pin = { .kind = KEEPER_DIRECTORY };

	pin.path_size = strlen(path) - root_size - 1;
	return buffer_append(out, &pin, sizeof(pin)) ?:
	       buffer_append(out, path + root_size + 1, pin.path_size);
}

/* What there is to tell of a scan that fails is the directory. */
static int scan_failed(struct buffer *out, const char *path, int err)
{
	out->size = 0;
	buffer_append(out, path, strlen(path));
	return err;
}

static int scan_directory(struct buffer *out, char *path, size_t root_size, int depth, int kind)
{
	size_t size = strlen(path), before = out->size;
	struct dirent *entry;
	struct statfs found;
	int err = 0;
	DIR *dir;

	dir = depth ? opendir(path) : NULL;
	if (depth && !dir)
		return errno == ENOENT ? 0 : scan_failed(out, path, -errno);
	/* Anything can be mounted below directories of others: it may be large, and has no pins. */
	if (dir && kind == KEEPER_MAP && (fstatfs(dirfd(dir), &found) || found.f_type != BPF_FS_MAGIC)) {
		closedir(dir);
		return 0;
	}
	while (dir && !err && ((errno = 0), entry = readdir(dir))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (size + strlen(entry->d_name) + 2 > PATH_MAX) {
			err = -ENAMETOOLONG;
			break;
		}
		path[size] = '/';
		strcpy(path + size + 1, entry->d_name);
		if (entry->d_type == DT_DIR)
			err = scan_directory(out, path, root_size, depth - 1, kind);
		else
			err = scan_pin(out, path, root_size, kind);
		path[size] = '\0';
	}
	/* A list that ends early must not pass for a whole one. */
	if (dir && !err && errno)
		err = scan_failed(out, path, -errno);
	if (dir)
		closedir(dir);
	if (!err && out->size == before && size > root_size)
		err = scan_empty(out, path, root_size);
	return err;
}

int keeper_scan(const char *root, int depth, int kind, char **stream, size_t *size)
{
	struct buffer out = {};
	char path[PATH_MAX];
	int err;

	if (strlen(root) >= sizeof(path))
		return -ENAMETOOLONG;
	strcpy(path, root);
	err = scan_directory(&out, path, strlen(root), depth, kind);
	*stream = out.data;
	*size = out.size;
	return err;
}
