// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Every TCP connection of a cgroup over IPv4, by its addresses and ports: a SOCKHASH of the sockets,
 * for an sk_msg or sk_skb program to redirect between, or for anybody to look up.
 *
 * A socket is added when its connection is established and leaves by itself when it is closed. With
 * both ends in the cgroup there are two entries, with local and remote exchanged.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* From <sys/socket.h>, which clang cannot include for the BPF target. */
#define AF_INET 2
#define AF_INET6 10

struct connection {
	__u32 local_ip; /* addresses in network byte order, as the kernel has them */
	__u32 remote_ip;
	__u32 local_port; /* ports in host byte order, both */
	__u32 remote_port;
};

/* No pinning attribute: the manifest asks for the pin. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65535);
	__type(key, struct connection);
	__type(value, __u64);
} sock_ops_map SEC(".maps");

/* A server that listens on :: has its IPv4 clients on IPv6 sockets, under ::ffff:a.b.c.d. */
static __always_inline int is_ipv4(const struct bpf_sock_ops *ops)
{
	if (ops->family == AF_INET)
		return 1;
	return ops->family == AF_INET6 && ops->remote_ip6[0] == 0 && ops->remote_ip6[1] == 0 &&
	       ops->remote_ip6[2] == bpf_htonl(0xffff);
}

SEC("sockops")
int add_to_sockhash(struct bpf_sock_ops *ops)
{
	struct connection connection;

	if (ops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (!is_ipv4(ops))
		return 1;

	connection.local_ip = ops->local_ip4;
	connection.remote_ip = ops->remote_ip4;
	connection.local_port = ops->local_port;
	/*
	 * The kernel gives local_port in host byte order, but remote_port as a 32-bit word in network
	 * byte order: on a little-endian machine the port is in the upper half, and ntohs() of it is 0.
	 */
	connection.remote_port = bpf_ntohl(ops->remote_port);

	/* A full map refuses the socket; its connection goes on without. */
	bpf_sock_hash_update(ops, &sock_ops_map, &connection, BPF_ANY);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
