/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/*
 * What the extension offers to Python beside libbpf's own functions: calls that would take many
 * crossings from Python, and kernel structures whose layout must not depend on the headers that
 * happen to be installed. Unless said otherwise a function returns 0 or a descriptor, or -errno.
 */

/* libbpf's messages are collected per thread, without debug ones; at most 1 MiB is kept. */
void keeper_init(void);
void keeper_log_clear(void);
const char *keeper_log(void);

struct keeper_map_info {
	uint32_t id, type, key_size, value_size, max_entries, flags;
	uint32_t btf_id, btf_key_type_id, btf_value_type_id;
	uint64_t map_extra;
	char name[16];
};

struct keeper_prog_info {
	uint32_t id, type, nr_map_ids;
	char name[16];
	uint8_t tag[8];
	uint32_t map_ids[64];	/* the verifier allows a program no more than 64 maps */
};

enum keeper_kind {
	KEEPER_OTHER = 0,
	KEEPER_MAP = 1,
	KEEPER_PROG = 2,
	KEEPER_LINK = 3,
	KEEPER_DIRECTORY = 4,
};

/* What a descriptor is: BPF_OBJ_GET returns any kind, and info of one can pass for another. */
int keeper_kind(int fd);
int keeper_map_info(int fd, struct keeper_map_info *info);
int keeper_prog_info(int fd, struct keeper_prog_info *info);

/*
 * Loads instructions as a program. With like_fd >= 0 it is loaded for the function or tracepoint that
 * this program was loaded for, if for any.
 */
int keeper_prog_load(uint32_t type, const char *name, const void *insns, uint32_t count,
		     uint32_t expected_attach_type, int like_fd);

/* inner_fd and btf_fd are 0 for none: neither a map nor BTF ever has descriptor 0 here. */
struct keeper_map_definition {
	const char *name;
	uint32_t type, key_size, value_size, max_entries, flags, numa_node;
	uint32_t inner_fd, btf_fd, btf_key_type_id, btf_value_type_id;
	uint64_t map_extra;
};
int keeper_map_create(const struct keeper_map_definition *map);
/* Moves the calling thread into a network namespace. */
int keeper_setns(int fd);
/* Gives a file another name in one step; one that is there already is EEXIST. */
int keeper_rename(const char *from, const char *to);
/* The magic number of the file system a path is on (statfs). */
int64_t keeper_fs_magic(const char *path);
int64_t keeper_fs_magic_of(int fd);
/* A descriptor of /proc as the kernel has it, whatever is mounted on it or in it. */
int keeper_bare_proc(void);

/*
 * A BTF type flattened: one line per leaf, "bit offset:bits:kind:path". The caller frees it.
 * NULL: no such type, or one that is too deep or too large to be worth comparing.
 */
char *keeper_layout(const struct btf *btf, uint32_t type_id);

/*
 * What an opened object declares. Strings are the object's, but for the layouts, which are
 * freed by the caller. The keeper pins, not libbpf: no map keeps a pin path.
 */
struct keeper_map_spec {
	const char *name;
	char *key_layout, *value_layout;	/* NULL without BTF */
	uint32_t type, key_size, value_size, max_entries, flags, numa_node;
	uint64_t map_extra;
	bool pinned, internal;
};

struct keeper_program_spec {
	const char *name, *section;
	uint32_t type, expected_attach_type;
	bool autoload;
};

void keeper_map_spec(const struct bpf_object *obj, struct bpf_map *map,
		     struct keeper_map_spec *spec);
void keeper_program_spec(const struct bpf_program *prog, struct keeper_program_spec *spec);

/* Writes the programs of a struct_ops map with BPF_F_LINK into it, without registering it. */
int keeper_struct_ops_fill(struct bpf_map *map);

/*
 * Objects that are loaded by several threads, none of which needs the interpreter meanwhile. The
 * arrays have room for count entries each. finished lists the objects that are done, nr_finished of
 * them; results and logs (of those that failed; freed by the caller) are theirs from then on.
 */
struct keeper_loads {
	uint32_t count, next, nr_finished;
	struct bpf_object **objects;
	int32_t *results;
	char **logs;
	uint32_t *finished;
};

/* Loads up to most objects that nobody has begun yet; returns how many. */
uint32_t keeper_load_some(struct keeper_loads *loads, uint32_t most);
/* Waits until more than seen objects are finished. */
void keeper_load_wait(struct keeper_loads *loads, uint32_t seen);

/*
 * All pins and empty directories below a directory, to the given depth, as a stream of records,
 * each a struct keeper_pin, then nr_map_ids u32, then path_size bytes of path relative to root, then
 * detail_size bytes of what else is told of a link. Pins are read as of one kind. That they are of it is checked for KEEPER_MAP only (others are
 * KEEPER_OTHER then): keeper_kind costs more than all the rest. A pin that cannot be read has its errno in error. The caller frees *stream.
 */
struct keeper_pin {
	uint32_t kind, error, id, type, prog_id, attach_type;
	uint64_t target_id;
	uint32_t nr_map_ids, path_size, detail_size, pad;
	char name[16];	/* of a program */
	uint8_t tag[8];
};
int keeper_scan(const char *root, int depth, int kind, char **stream, size_t *size);
