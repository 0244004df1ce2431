#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 4);
	__uint(value_size, 1);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} key_short SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 261);
	__uint(value_size, 1);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} key_long SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 5);
	__uint(value_size, 0);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} value_short SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 5);
	__uint(value_size, 4194025);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} value_long SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 5);
	__uint(value_size, 1);
	__uint(max_entries, 0);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} no_entries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 5);
	__uint(value_size, 1);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
} foreign_flag SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 5);
	__uint(value_size, 1);
	__uint(max_entries, 1);
} no_no_prealloc SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 5);
	__uint(value_size, 1);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_RDONLY | BPF_F_WRONLY);
} read_and_write_only SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 5);
	__uint(value_size, 1);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG);
} prog_read_and_write_only SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 5);
	__uint(value_size, 1);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_NUMA_NODE);
	__uint(numa_node, 7);
} absent_node SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(key_size, 5);
	__uint(value_size, 1);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(map_extra, 1);
} map_extra SEC(".maps");
