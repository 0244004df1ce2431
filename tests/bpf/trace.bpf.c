// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A program of tracing that counts events by the number that each carries, so that one missed and
 * one seen twice do not look like nothing. The events are made by tests/kernel/victim.c.
 *
 * HOOK	section of the program	MAGIC	marks the events that are ours
 * PROGRAM	its name				SEEN	that of its map
 * SLEEPS	it calls what only a program that may sleep can call
 * WHERE	how the number is found: one of the following
 */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define TRACEPOINT	1	/* arguments of prctl(MAGIC, number) in a tracepoint's record */
#define REGISTERS	2	/* of prctl, in the registers that the first argument points to */
#define PROBE_REGISTERS	3	/* likewise, of a kprobe */
#define ARGUMENTS	4	/* of prctl, as they are */
#define FUNCTION	5	/* the first argument of a function in a binary */
#define RESULT		6	/* what such a function returns */
#define NOWHERE		7	/* there is none: all count as number 0 */
#define READ		8	/* nor is one needed, what counts is what the iterator writes */
#define KERNEL_RESULT	9	/* what a function of the kernel returns: MAGIC above the number */

#define USED_BY_SOME static __always_inline __attribute__((unused))

#ifndef PROGRAM
#define PROGRAM trace
#endif
#ifndef SEEN
#define SEEN seen
#endif
#ifndef VERDICT
#define VERDICT 0
#endif

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1 << 18);
} SEEN SEC(".maps");

USED_BY_SOME int count(__u64 magic, __u32 number)
{
	__u32 *times;

	if (magic != MAGIC)
		return VERDICT;
	times = bpf_map_lookup_elem(&SEEN, &number);
	if (times)
		__sync_fetch_and_add(times, 1);
	return VERDICT;
}

USED_BY_SOME int count_registers(const void *registers)
{
	struct pt_regs regs = {};

	bpf_probe_read_kernel(&regs, sizeof(regs), registers);
	return count(PT_REGS_PARM1_SYSCALL(&regs), PT_REGS_PARM2_SYSCALL(&regs));
}

#if WHERE == READ

struct seq_file;

SEC(HOOK)
int PROGRAM(struct seq_file ***ctx)	/* the context begins with a pointer to what begins with one */
{
	static const char line[] = "here\n";

	bpf_seq_write(**ctx, line, sizeof(line) - 1);
	return 0;
}

#else

SEC(HOOK)
int PROGRAM(void *ctx)
{
	__u64 *words __attribute__((unused)) = ctx;
#ifdef SLEEPS
	__u64 word;

	bpf_copy_from_user(&word, sizeof(word), (void *)0);
#endif
#if WHERE == TRACEPOINT
	return count(words[2], words[3]);
#elif WHERE == REGISTERS
	return count_registers((void *)words[0]);
#elif WHERE == PROBE_REGISTERS
	return count_registers((void *)PT_REGS_PARM1((struct pt_regs *)ctx));
#elif WHERE == ARGUMENTS
	return count(words[0], words[1]);
#elif WHERE == FUNCTION
	return count(MAGIC, PT_REGS_PARM1((struct pt_regs *)ctx));
#elif WHERE == RESULT
	return count(MAGIC, PT_REGS_RC((struct pt_regs *)ctx));
#elif WHERE == KERNEL_RESULT
	return count((__u64)PT_REGS_RC((struct pt_regs *)ctx) >> 32, PT_REGS_RC((struct pt_regs *)ctx));
#else
	return count(MAGIC, 0);
#endif
}

#endif

char LICENSE[] SEC("license") = "GPL";
