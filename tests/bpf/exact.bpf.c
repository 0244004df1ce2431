// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Counts what it sees, for each of its versions apart: the sum over versions tells whether an event
 * was missed or seen twice.
 *
 * HOOK	section	VERSION	slot of the counts
 * PID	only of this process	SYSCALL	of sys_enter, only this call
 * SIZE	expression: bytes of an event	VERDICT	what is returned
 * SOCKETS	a map of sockets, under this name, of TYPE
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef CONTEXT
#define CONTEXT __u64
#endif
#ifndef VERDICT
#define VERDICT 0
#endif
#ifndef VERSION
#define VERSION 1
#endif
#ifndef SIZE
#define SIZE 0
#endif
#ifndef TYPE
#define TYPE BPF_MAP_TYPE_SOCKMAP
#endif
#ifndef ENTRIES
#define ENTRIES 8
#endif
#ifndef PROGRAM
#define PROGRAM program
#endif

struct seen {
	__u64 events, bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct seen);
	__uint(max_entries, 4);
} seen SEC(".maps");

#ifdef SOCKETS
struct {
	__uint(type, TYPE);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, ENTRIES);
} SOCKETS SEC(".maps");
#endif

SEC(HOOK)
int PROGRAM(CONTEXT *ctx)
{
	__u32 version = VERSION;
	struct seen *value;

#ifdef SYSCALL
	if (ctx[1] != SYSCALL)
		return VERDICT;
#endif
#ifdef PID
	if (bpf_get_current_pid_tgid() >> 32 != PID)
		return VERDICT;
#endif
	value = bpf_map_lookup_elem(&seen, &version);
	if (value) {
		__sync_fetch_and_add(&value->events, 1);
		__sync_fetch_and_add(&value->bytes, SIZE);
	}
	return VERDICT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
