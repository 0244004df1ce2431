// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Every program that is started on the machine, as a stream of events for a reader in user space.
 *
 * Two programs that say the same in two ways; attach one. exec_to_ring writes to a RINGBUF: one for
 * all CPUs, in order, and its reader needs nothing but the map. exec_to_perf does it the older way,
 * with a PERF_EVENT_ARRAY: its reader makes a buffer for each CPU and puts it into the map. Either
 * way the buffer belongs to the map and not to the program, so a reader goes on reading over a
 * reload. Events that find no room, or no buffer, are counted in `lost`.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef VERSION
#define VERSION 1
#endif

struct event {
	__u64 time; /* nanoseconds since boot */
	__u32 pid;
	__u32 uid;
	__u32 version; /* of the program that wrote this */
	char command[16];
	char file[92];
};

/* What the kernel hands to programs of this tracepoint: see its format in tracefs. */
struct sched_process_exec {
	__u64 common;
	__u32 filename; /* where the text stands: bytes from the start of this, and its length */
	__s32 pid;
	__s32 old_pid;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} buffers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64); /* events */
} lost SEC(".maps");

static __always_inline void describe(struct sched_process_exec *ctx, struct event *event)
{
	event->time = bpf_ktime_get_ns();
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->uid = bpf_get_current_uid_gid();
	event->version = VERSION;
	bpf_get_current_comm(event->command, sizeof(event->command));
	bpf_probe_read_kernel_str(event->file, sizeof(event->file),
				  (void *)ctx + (ctx->filename & 0xffff));
}

static __always_inline void count_lost(void)
{
	__u32 first = 0;
	__u64 *events = bpf_map_lookup_elem(&lost, &first);

	if (events)
		__sync_fetch_and_add(events, 1);
}

SEC("tracepoint/sched/sched_process_exec")
int exec_to_ring(struct sched_process_exec *ctx)
{
	struct event *event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);

	if (!event) {
		count_lost();
		return 0;
	}
	describe(ctx, event);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("tracepoint/sched/sched_process_exec")
int exec_to_perf(struct sched_process_exec *ctx)
{
	struct event event = {};

	describe(ctx, &event);
	/* ENOENT: no reader has put a buffer there for this CPU. */
	if (bpf_perf_event_output(ctx, &buffers, BPF_F_CURRENT_CPU, &event, sizeof(event)) < 0)
		count_lost();
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
