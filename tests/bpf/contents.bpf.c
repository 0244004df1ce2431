// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* Maps with every kind of member, for those who read contents. No program. */
#include <linux/bpf.h>
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>

#ifndef ENTRIES
#define ENTRIES 16
#endif

/* A flow, as programs count it: key 16 bytes, value 32. */
struct flow {
	__be32 source, destination;
	__be16 source_port, destination_port;
	__u8 protocol;
	__u8 pad[3];
};

enum state { STATE_NEW = 1, STATE_OPEN = 2, STATE_CLOSED = -1 };

struct flow_value {
	__u64 packets, bytes;
	__s32 delta;
	__u16 mark;
	_Bool seen;
	__u8 ttl;
	enum state state;
	__u32 last;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct flow);
	__type(value, struct flow_value);
	__uint(max_entries, ENTRIES);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, __u32);
	__type(value, struct flow_value);
	__uint(max_entries, 16);
} percpu_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 4);
} percpu_numbers SEC(".maps");

typedef __be32 address_t;

struct everything {
	struct {
		__s8 small;
		__s16 shorter;
		__s64 longer;
	} negative;
	union {
		__u32 number;
		__u8 raw[4];
	} either;
	union {
		__u32 first;
		struct { __u16 low, high; };
	};
	__u32 three : 3, thirteen : 13;
	__s32 minus : 5;
	__u64 forty : 40;
	enum state state, other;
	float single;
	double twice[3];
	char text[16];
	char lines[2][4];
	unsigned char mac[6];
	__be16 port;
	const address_t address;
	__be64 big;
	struct in6_addr six;
	void *pointer;
	struct { __u16 a; char b[2]; } pairs[2][2];
	_Bool yes, no;
	char letter;
	unsigned __int128 huge;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct everything);
	__uint(max_entries, 1);
} everything SEC(".maps");

struct prefix {
	__u32 prefixlen;
	__be32 address;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix);
	__type(value, __u32);
	__uint(max_entries, 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} routes SEC(".maps");

struct limits {
	__u32 low, high;
};

/* Global data: a section with variables. */
struct limits limits = { 1, 2 };
char name[8] = "keeper";

char LICENSE[] SEC("license") = "Dual BSD/GPL";
