// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Sends numbered UDP packets as fast as one thread can, until standard input ends.
 *
 *   sender ADDRESS PORT MAX
 *
 * The payload is the packet's number, from 0, in the machine's byte order. Prints how many were
 * sent: at most MAX, where it stops by itself.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define BATCH 64

static int told_to_stop(void)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };

	return poll(&input, 1, 0) != 0;
}

/* Returns how many of the batch were sent: those after an error are not. */
static int send_batch(int fd, struct sockaddr_in *to, uint32_t first)
{
	struct mmsghdr messages[BATCH];
	struct iovec payloads[BATCH];
	uint32_t numbers[BATCH];

	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < BATCH; i++) {
		numbers[i] = first + i;
		payloads[i] = (struct iovec){ &numbers[i], sizeof(numbers[i]) };
		messages[i].msg_hdr = (struct msghdr){
			.msg_name = to,
			.msg_namelen = sizeof(*to),
			.msg_iov = &payloads[i],
			.msg_iovlen = 1,
		};
	}
	return sendmmsg(fd, messages, BATCH, 0);
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	uint32_t sent = 0, max;

	if (argc != 4 || fd < 0 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
		return 2;
	to.sin_port = htons(atoi(argv[2]));
	max = strtoul(argv[3], NULL, 10);
	while (sent + BATCH <= max && !told_to_stop()) {
		int count = send_batch(fd, &to, sent);

		if (count > 0) {
			sent += count;
		} else if (errno != ENOBUFS && errno != EAGAIN) {
			perror("sender: cannot send");
			return 1;
		}
	}
	printf("%u\n", sent);
	return 0;
}
