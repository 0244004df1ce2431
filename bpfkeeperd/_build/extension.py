"""The cffi declaration of ``bpfkeeperd._libbpf``: libbpf in API mode, checked by the C compiler."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
PARTS = (
    *("links", "trace", "libbpf", "pins", "attached", "entries", "dump", "slots", "figures"),
    *("stats", "probes", "features", "events", "net"),
)
"""C files with their headers; each can use what the headers have, a later one all of an earlier."""
HEADER = "".join((HERE / f"{part}.h").read_text() for part in PARTS)
SOURCE = "".join((HERE / f"{part}.c").read_text() for part in PARTS)

LIBBPF = """
struct bpf_object;
struct bpf_map;
struct bpf_program;
struct btf;

struct bpf_object_open_opts { size_t sz; const char *object_name; ...; };

struct bpf_object *bpf_object__open_mem(const void *buf, size_t size,
                                        const struct bpf_object_open_opts *opts);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);
struct bpf_program *bpf_object__next_program(const struct bpf_object *obj,
                                             struct bpf_program *prog);

struct bpf_map *bpf_map__inner_map(struct bpf_map *map);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
int bpf_map__set_map_flags(struct bpf_map *map, uint32_t flags);
int bpf_map__fd(const struct bpf_map *map);

int bpf_program__set_type(struct bpf_program *prog, int type);
int bpf_program__set_expected_attach_type(struct bpf_program *prog, int type);
int bpf_program__set_attach_target(struct bpf_program *prog, int attach_prog_fd,
                                   const char *attach_func_name);
uint32_t bpf_program__flags(const struct bpf_program *prog);
int bpf_program__set_flags(struct bpf_program *prog, uint32_t flags);
int bpf_program__set_autoload(struct bpf_program *prog, bool autoload);
int bpf_program__fd(const struct bpf_program *prog);

int bpf_prog_attach(int prog_fd, int target_fd, int attach_type, unsigned int flags);
int bpf_prog_detach2(int prog_fd, int target_fd, int attach_type);
int bpf_obj_get(const char *path);
int bpf_obj_pin(int fd, const char *path);
int bpf_iter_create(int link_fd);
int bpf_raw_tracepoint_open(const char *name, int prog_fd);
int bpf_map_get_fd_by_id(uint32_t id);
int bpf_link_get_fd_by_id(uint32_t id);
int bpf_link_detach(int link_fd);
int bpf_prog_get_fd_by_id(uint32_t id);
int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_lookup_and_delete_elem(int fd, const void *key, void *value);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
struct bpf_map_batch_opts;
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values,
                         uint32_t *count, const struct bpf_map_batch_opts *opts);

const char *libbpf_version_string(void);
int libbpf_probe_bpf_map_type(int map_type, const void *opts);
int libbpf_probe_bpf_helper(int prog_type, int helper_id, const void *opts);

struct bpf_btf_load_opts;
int bpf_btf_load(const void *data, size_t size, const struct bpf_btf_load_opts *opts);
struct btf *btf__load_from_kernel_by_id(uint32_t id);
const void *btf__raw_data(const struct btf *btf, uint32_t *size);
void btf__free(struct btf *btf);

int inotify_init1(int flags);
int inotify_add_watch(int fd, const char *path, uint32_t mask);

void free(void *);
int malloc_trim(size_t);
"""

# bpf_program__set_type and its like take enums; "int" in the declarations above is what the C
# compiler converts to them, and keeps numbers that this libbpf has no name for.
PREAMBLE = """
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
"""

ffibuilder = FFI()
ffibuilder.cdef(LIBBPF + HEADER)
ffibuilder.set_source(
    "bpfkeeperd._libbpf",
    PREAMBLE + HEADER + SOURCE,
    libraries=["bpf"],
    extra_compile_args=["-O2", "-D_GNU_SOURCE"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
