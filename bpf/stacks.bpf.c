// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Where a process is when something happens: stack traces, counted for each process and pair of
 * user and kernel stack.
 *
 * What happens is up to whoever attaches it, with perf_event_open(2): a CPU clock makes it a
 * profiler, page faults show who allocates, context switches who sleeps. A trace is stored once in
 * `stacks`, as addresses from the innermost call outwards, and counted in `stack_counts` by its ID.
 * Both maps are needed to read either: keep both.
 */
#include <linux/bpf.h>
#include <linux/bpf_perf_event.h>
#include <bpf/bpf_helpers.h>

/* Calls of a trace; the kernel takes no more than the sysctl kernel.perf_event_max_stack. */
#define DEPTH_MAX 127

struct place {
	__u32 pid; /* of the process, as user space means it: all threads have the same */
	/*
	 * IDs in `stacks`. Less than 0 is an error in place of a trace: -EFAULT if there is none (a
	 * kernel thread has no user stack), -EEXIST if another trace has its slot.
	 */
	__s32 user_stack;
	__s32 kernel_stack;
	char command[16];
};

struct trace {
	__u64 addresses[DEPTH_MAX]; /* 0 after the last */
};

/* No pinning attributes: the manifest asks for the pins. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct trace);
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct place);
	__type(value, __u64);
} stack_counts SEC(".maps");

SEC("perf_event")
int count_stacks(struct bpf_perf_event_data *ctx)
{
	struct place place = {};
	__u64 one = 1, *count;

	place.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(place.command, sizeof(place.command));
	place.user_stack = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
	place.kernel_stack = bpf_get_stackid(ctx, &stacks, 0);

	count = bpf_map_lookup_elem(&stack_counts, &place);
	/* NOEXIST: another CPU may have been faster, and then there is a count to add to. */
	if (!count && bpf_map_update_elem(&stack_counts, &place, &one, BPF_NOEXIST))
		count = bpf_map_lookup_elem(&stack_counts, &place);
	if (count) /* not there even now: the map is full */
		__sync_fetch_and_add(count, 1);
	return 0;
}

/* bpf_get_stackid() is for programs under the GPL. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
