// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * How every TCP connection of a cgroup does: round-trip time, congestion window, bytes and
 * retransmissions, looked at when it is established, once an interval while data flows, and when it
 * closes.
 *
 * The figures are stored with the socket itself and go when it goes: there is nothing to size and
 * nothing to clean up. They are read with the descriptor of the socket as the key, by the process
 * that owns it or, with pidfd_getfd(2), by another.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* The least time between two looks at a socket. Each needs a round trip to be measured. */
#ifndef INTERVAL_MS
#define INTERVAL_MS 1000
#endif

struct tcp_stats {
	__u64 established_ns; /* since boot, as clock_gettime(CLOCK_MONOTONIC) has it */
	__u64 looked_at_ns;   /* when the rest was taken */
	__u64 looks;
	__u64 bytes_received;
	__u64 bytes_acked; /* sent, and acknowledged by the other end */
	__u32 srtt_us;     /* smoothed round-trip time */
	__u32 snd_cwnd;    /* congestion window, in segments */
	__u32 retransmitted;
	__u32 state; /* 1 established, 7 closed: enum in <netinet/tcp.h> */
};

/* No pinning attribute: the manifest asks for the pin. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct tcp_stats);
} tcp_stats SEC(".maps");

static __always_inline void look(struct bpf_sock_ops *ops, struct tcp_stats *stats, __u64 now)
{
	stats->looked_at_ns = now;
	stats->looks++;
	stats->bytes_received = ops->bytes_received;
	stats->bytes_acked = ops->bytes_acked;
	stats->srtt_us = ops->srtt_us >> 3; /* the kernel keeps eighths */
	stats->snd_cwnd = ops->snd_cwnd;
	stats->retransmitted = ops->total_retrans;
	stats->state = ops->state;
}

static __always_inline void begin(struct bpf_sock_ops *ops, struct bpf_sock *socket)
{
	__u64 now = bpf_ktime_get_ns();
	struct tcp_stats *stats =
		bpf_sk_storage_get(&tcp_stats, socket, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!stats)
		return;
	stats->established_ns = now;
	look(ops, stats, now);
	/* Flags of the socket, not of this program: they stay when another takes its place. */
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG |
					       BPF_SOCK_OPS_STATE_CB_FLAG);
}

SEC("sockops")
int record_tcp_stats(struct bpf_sock_ops *ops)
{
	struct bpf_sock *socket = ops->sk;
	struct tcp_stats *stats;
	__u64 now;

	if (!socket)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		begin(ops, socket);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		now = bpf_ktime_get_ns();
		stats = bpf_sk_storage_get(&tcp_stats, socket, 0, 0);
		if (stats && now - stats->looked_at_ns >= INTERVAL_MS * 1000000ull)
			look(ops, stats, now);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		stats = bpf_sk_storage_get(&tcp_stats, socket, 0, 0);
		if (!stats)
			break;
		look(ops, stats, bpf_ktime_get_ns());
		stats->state = ops->args[1]; /* the new one; the socket still has the old */
		break;
	}
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
