// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * A short cut between local TCP sockets: what one end sends is put straight into the other end's
 * receive queue, past TCP, IP and loopback.
 *
 * `add_socket` puts both ends of each new IPv4 connection of a cgroup into a SOCKHASH, and
 * `redirect` is run for what they send: if the other end is in the map too it is given the data, and
 * if not the data goes the usual way. Connections that were there before go the usual way as well.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* From <sys/socket.h>, which clang cannot include for the BPF target. */
#define AF_INET 2
#define AF_INET6 10

struct ends {
	__u32 local_ip; /* addresses in network byte order, as the kernel has them */
	__u32 remote_ip;
	__u32 local_port; /* ports in host byte order, both */
	__u32 remote_port;
};

struct messages {
	__u64 messages;
	__u64 bytes;
};

enum way {
	SHORT_CUT,
	USUAL_WAY,
	WAYS,
};

/* No pinning attributes: the manifest asks for the pins. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65535);
	__type(key, struct ends);
	__type(value, __u64);
} local_sockets SEC(".maps");

/* By enum way. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WAYS);
	__type(key, __u32);
	__type(value, struct messages);
} redirected SEC(".maps");

/* A server that listens on :: has its IPv4 clients on IPv6 sockets, under ::ffff:a.b.c.d. */
static __always_inline int is_ipv4(const struct bpf_sock_ops *ops)
{
	if (ops->family == AF_INET)
		return 1;
	return ops->family == AF_INET6 && ops->remote_ip6[0] == 0 && ops->remote_ip6[1] == 0 &&
	       ops->remote_ip6[2] == bpf_htonl(0xffff);
}

SEC("sockops")
int add_socket(struct bpf_sock_ops *ops)
{
	struct ends ends;

	if (ops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (!is_ipv4(ops))
		return 1;
	ends.local_ip = ops->local_ip4;
	ends.remote_ip = ops->remote_ip4;
	ends.local_port = ops->local_port;
	/* The port is in the upper half of a word in network byte order. */
	ends.remote_port = bpf_ntohl(ops->remote_port);
	/* A full map refuses the socket; its connection goes the usual way. */
	bpf_sock_hash_update(ops, &local_sockets, &ends, BPF_NOEXIST);
	return 1;
}

SEC("sk_msg")
int redirect(struct sk_msg_md *msg)
{
	/* The other end, as it sees itself. */
	struct ends ends = {
		.local_ip = msg->remote_ip4,
		.remote_ip = msg->local_ip4,
		.local_port = bpf_ntohl(msg->remote_port),
		.remote_port = msg->local_port,
	};
	long verdict = bpf_msg_redirect_hash(msg, &local_sockets, &ends, BPF_F_INGRESS);
	__u32 way = verdict == SK_PASS ? SHORT_CUT : USUAL_WAY;
	struct messages *messages = bpf_map_lookup_elem(&redirected, &way);

	if (messages) {
		__sync_fetch_and_add(&messages->messages, 1);
		__sync_fetch_and_add(&messages->bytes, msg->size);
	}
	/* Not the verdict: it is to drop if the other end is not in the map. */
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
