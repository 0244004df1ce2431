// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Makes numbered TCP connections over loopback, one at a time, until standard input ends.
 *
 *   connector PORT MAX
 *
 * The n-th goes to 127.0.0.0 + n, from 1 on. Prints how many were made: at most MAX.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int told_to_stop(void)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };

	return poll(&input, 1, 0) != 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_in any = { .sin_family = AF_INET }, to = any;
	struct linger none = { .l_onoff = 1 };	/* no TIME_WAIT */
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	uint32_t made = 0, max;

	if (argc != 3 || listener < 0)
		return 2;
	any.sin_port = to.sin_port = htons(atoi(argv[1]));
	max = strtoul(argv[2], NULL, 10);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (void *)&any, sizeof(any)) || listen(listener, 16))
		return 2;
	while (made + 1 < max && !told_to_stop()) {
		int client = socket(AF_INET, SOCK_STREAM, 0), server;

		to.sin_addr.s_addr = htonl(0x7f000000 + made + 1);
		if (connect(client, (void *)&to, sizeof(to))) {
			perror("connector: cannot connect");
			return 1;
		}
		made++;
		server = accept(listener, NULL, NULL);
		setsockopt(client, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
		close(client);
		close(server);
	}
	printf("%u\n", made);
	return 0;
}
