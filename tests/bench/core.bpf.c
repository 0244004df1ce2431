// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* A program that reads the kernel's own structs: libbpf relocates it against the kernel's BTF. */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

struct signal_struct {
	int nr_threads;
} __attribute__((preserve_access_index));

struct task_struct {
	int tgid;
	unsigned int flags;
	struct task_struct *real_parent;
	struct signal_struct *signal;
} __attribute__((preserve_access_index));

struct sender {
	__u64 packets;
	__u32 parent, flags, threads, version;
};

/* The digits are replaced in the compiled object, to have as many maps as there are objects. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct sender);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} senders_000 SEC(".maps");

SEC("cgroup_skb/egress")
int count_senders(struct __sk_buff *skb)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 key = BPF_CORE_READ(task, tgid);
	struct sender fresh = {}, *sender = bpf_map_lookup_elem(&senders_000, &key);

	if (!sender) {
		fresh.packets = 1;
		fresh.parent = BPF_CORE_READ(task, real_parent, tgid);
		fresh.flags = BPF_CORE_READ(task, flags);
		fresh.threads = BPF_CORE_READ(task, signal, nr_threads);
		fresh.version = VERSION;
		bpf_map_update_elem(&senders_000, &key, &fresh, BPF_NOEXIST);
		return 1;
	}
	__sync_fetch_and_add(&sender->packets, 1);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
