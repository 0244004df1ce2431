#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_STRUCT_OPS);
	__uint(key_size, 3);
	__uint(value_size, 1);
	__uint(max_entries, 1);
} key_size SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STRUCT_OPS);
	__uint(key_size, 4);
	__uint(value_size, 0);
	__uint(max_entries, 1);
} value_short SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STRUCT_OPS);
	__uint(key_size, 4);
	__uint(value_size, 1);
	__uint(max_entries, 2);
} entries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STRUCT_OPS);
	__uint(key_size, 4);
	__uint(value_size, 1);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_CLONE);
} foreign_flag SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STRUCT_OPS);
	__uint(key_size, 4);
	__uint(value_size, 1);
	__uint(max_entries, 1);
	__uint(map_extra, 1);
} map_extra SEC(".maps");
