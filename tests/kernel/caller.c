// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Makes calls that carry a number, which programs of its cgroup see, until standard input ends.
 *
 *   caller PORT LEVEL MAX
 *
 * From 1 on; prints how many times all were made: less than MAX, which is 2^20 at most.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static int told_to_stop(void)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };

	return poll(&input, 1, 0) != 0;
}

static int fail(const char *what)
{
	perror(what);
	return 1;
}

/* With an address that nobody else uses, there is nothing to wait for. */
static int make_calls(uint32_t number, int port, int level, int peer, int sysctl)
{
	struct sockaddr_in own = { .sin_family = AF_INET, .sin_port = htons(port) }, other;
	socklen_t size = sizeof(other), none = 0;
	int sock = socket(AF_INET, SOCK_DGRAM, 0);
	char byte;

	own.sin_addr.s_addr = htonl(0x7f000000 + number);
	if (sock < 0 || bind(sock, (void *)&own, sizeof(own)))
		return fail("caller: cannot bind");
	if (getsockname(sock, (void *)&other, &size))
		return fail("caller: cannot get the name");
	/* There and back: the one who receives is told the numbered address. */
	if (sendto(peer, "x", 1, 0, (void *)&own, sizeof(own)) != 1)
		return fail("caller: cannot send");
	size = sizeof(other);
	if (recvfrom(sock, &byte, 1, 0, (void *)&other, &size) != 1)
		return fail("caller: cannot receive");
	if (sendto(sock, "x", 1, 0, (void *)&other, size) != 1 ||
	    recvfrom(peer, &byte, 1, 0, (void *)&other, &size) != 1)
		return fail("caller: cannot answer");
	if (connect(sock, (void *)&own, sizeof(own)) ||
	    getpeername(sock, (void *)&other, &size))
		return fail("caller: cannot connect");
	if (!setsockopt(sock, level, number, &byte, 1) || !getsockopt(sock, level, number, 0, &none))
		return fail("caller: there is such an option");
	if (pread(sysctl, &byte, 1, number) < 0)
		return fail("caller: cannot read");
	if (!mknod("/tmp/no-such-device", S_IFCHR, makedev(240, number)) || errno != EPERM) {
		unlink("/tmp/no-such-device");
		return fail("caller: a device was made");
	}
	close(sock);
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_in any = { .sin_family = AF_INET };
	int peer = socket(AF_INET, SOCK_DGRAM, 0);
	int sysctl = open("/proc/sys/kernel/ostype", O_RDONLY);
	uint32_t made = 0, max;

	if (argc != 4 || peer < 0 || sysctl < 0)
		return 2;
	max = strtoul(argv[3], NULL, 10);
	any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(peer, (void *)&any, sizeof(any)))
		return fail("caller: cannot bind");
	while (made + 1 < max && !told_to_stop()) {
		if (make_calls(made + 1, atoi(argv[1]), atoi(argv[2]), peer, sysctl))
			return 1;
		made++;
	}
	printf("%u\n", made);
	return 0;
}
