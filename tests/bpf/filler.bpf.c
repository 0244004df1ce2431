// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* Writes a record of 56 bytes, 64 with its header, each time it is run; says whether it was refused. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} ring SEC(".maps");

SEC("raw_tp/sys_enter")
int fill(void *ctx)
{
	char record[56] = {};

	return bpf_ringbuf_output(&ring, record, sizeof(record), BPF_RB_NO_WAKEUP) != 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
