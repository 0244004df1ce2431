#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, 33 /* BPF_MAP_TYPE_ARENA */);
	__uint(key_size, 4);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
} key_size SEC(".maps");

struct {
	__uint(type, 33 /* BPF_MAP_TYPE_ARENA */);
	__uint(value_size, 4);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
} value_size SEC(".maps");

struct {
	__uint(type, 33 /* BPF_MAP_TYPE_ARENA */);
	__uint(max_entries, 0);
	__uint(map_flags, BPF_F_MMAPABLE);
} no_entries SEC(".maps");

struct {
	__uint(type, 33 /* BPF_MAP_TYPE_ARENA */);
	__uint(max_entries, 1048577);
	__uint(map_flags, BPF_F_MMAPABLE);
} many_entries SEC(".maps");

struct {
	__uint(type, 33 /* BPF_MAP_TYPE_ARENA */);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_CLONE | BPF_F_MMAPABLE);
} foreign_flag SEC(".maps");

struct {
	__uint(type, 33 /* BPF_MAP_TYPE_ARENA */);
	__uint(max_entries, 1);
} no_mmapable SEC(".maps");

struct {
	__uint(type, 33 /* BPF_MAP_TYPE_ARENA */);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(map_extra, 1);
} map_extra SEC(".maps");
