#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, 32 /* BPF_MAP_TYPE_CGRP_STORAGE */);
	__type(key, char[3]);
	__type(value, char[1]);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} key_size SEC(".maps");

struct {
	__uint(type, 32 /* BPF_MAP_TYPE_CGRP_STORAGE */);
	__type(key, int);
	__uint(value_size, 0);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} value_short SEC(".maps");

struct {
	__uint(type, 32 /* BPF_MAP_TYPE_CGRP_STORAGE */);
	__type(key, int);
	__type(value, char[65408]);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} value_long SEC(".maps");

struct {
	__uint(type, 32 /* BPF_MAP_TYPE_CGRP_STORAGE */);
	__type(key, int);
	__type(value, char[1]);
	__uint(max_entries, 10);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} entries SEC(".maps");

struct {
	__uint(type, 32 /* BPF_MAP_TYPE_CGRP_STORAGE */);
	__type(key, int);
	__type(value, char[1]);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_NUMA_NODE);
} foreign_flag SEC(".maps");

struct {
	__uint(type, 32 /* BPF_MAP_TYPE_CGRP_STORAGE */);
	__type(key, int);
	__type(value, char[1]);
} no_no_prealloc SEC(".maps");

struct {
	__uint(type, 32 /* BPF_MAP_TYPE_CGRP_STORAGE */);
	__type(key, int);
	__type(value, char[1]);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(map_extra, 1);
} map_extra SEC(".maps");

struct {
	__uint(type, 32 /* BPF_MAP_TYPE_CGRP_STORAGE */);
	__uint(key_size, 4);
	__uint(value_size, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} no_btf SEC(".maps");

struct {
	__uint(type, 32 /* BPF_MAP_TYPE_CGRP_STORAGE */);
	__type(key, float);
	__type(value, char[1]);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} key_is_no_integer SEC(".maps");
