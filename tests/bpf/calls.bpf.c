// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Notes how often each numbered call of tests/kernel/caller.c is seen at each hook of its cgroup.
 *
 * VERSION	1 or 2: two versions of the object
 * EVENTS	how many numbers there are, a power of two
 * PORT, LEVEL	mark what is ours
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum kind {
	BIND4, POST_BIND4, CONNECT4, SENDMSG4, RECVMSG4, GETPEERNAME4, GETSOCKNAME4,
	SETSOCKOPT, GETSOCKOPT, SYSCTL, DEV, SOCK_CREATE, SOCK_RELEASE, KINDS,
};

/* A byte for each, so that one that is missed is not made up for by one seen twice. */
struct times {
	__u8 seen[KINDS][EVENTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct times);
} times SEC(".maps");

/* How many each version saw: both must have had their turn. */
struct by_version {
	__u64 seen[KINDS][3];
	__u64 numbered[KINDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct by_version);
} versions SEC(".maps");

static __always_inline int note(enum kind kind, __u32 number)
{
	__u32 key = 0;
	struct times *noted = bpf_map_lookup_elem(&times, &key);
	struct by_version *counted = bpf_map_lookup_elem(&versions, &key);

	if (!noted || !counted)
		return 1;
	if (kind >= SOCK_CREATE)	/* nothing is known of the socket: they are counted */
		number = __sync_fetch_and_add(&counted->numbered[kind], 1);
	noted->seen[kind][number & (EVENTS - 1)]++;
	__sync_fetch_and_add(&counted->seen[kind][VERSION], 1);
	return 1;
}

/* The last 24 bits of an address are the number of a call. */
#define NUMBER(address) (bpf_ntohl(address) & 0xffffff)

#define AT_ADDRESS(name, kind)						\
SEC("cgroup/" #name)							\
int name(struct bpf_sock_addr *ctx)					\
{									\
	return ctx->user_port == bpf_htons(PORT) ? note(kind, NUMBER(ctx->user_ip4)) : 1;	\
}

AT_ADDRESS(bind4, BIND4)
AT_ADDRESS(connect4, CONNECT4)
AT_ADDRESS(sendmsg4, SENDMSG4)
AT_ADDRESS(recvmsg4, RECVMSG4)
AT_ADDRESS(getpeername4, GETPEERNAME4)
AT_ADDRESS(getsockname4, GETSOCKNAME4)

SEC("cgroup/post_bind4")
int post_bind4(struct bpf_sock *ctx)
{
	return ctx->src_port == PORT ? note(POST_BIND4, NUMBER(ctx->src_ip4)) : 1;
}

#define AT_OPTION(name, kind)						\
SEC("cgroup/" #name)							\
int name(struct bpf_sockopt *ctx)					\
{									\
	return ctx->level == LEVEL ? note(kind, ctx->optname) : 1;	\
}

AT_OPTION(setsockopt, SETSOCKOPT)
AT_OPTION(getsockopt, GETSOCKOPT)

SEC("cgroup/sysctl")
int sysctl(struct bpf_sysctl *ctx)
{
	return note(SYSCTL, ctx->file_pos);
}

SEC("cgroup/dev")
int dev(struct bpf_cgroup_dev_ctx *ctx)
{
	if (ctx->access_type >> 16 != BPF_DEVCG_ACC_MKNOD)
		return 1;
	note(DEV, ctx->minor);
	return 0;	/* it is not to be made */
}

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *ctx)
{
	return note(SOCK_CREATE, 0);
}

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	return note(SOCK_RELEASE, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
