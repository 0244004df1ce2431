/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/*
 * Makes events that carry a number: victim MAGIC FROM COUNT [MICROSECONDS]
 * With a pause between them it goes on until its standard input ends, COUNT at most. Prints how many.
 * The number is an argument of prctl, and argument and result of victim_touch; with MAGIC above it, it
 * is the result of lseek.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

__attribute__((noinline)) long victim_touch(long number)
{
	__asm__ volatile("" : "+r"(number));
	return number;
}

/* Of the same pattern, and never called. */
__attribute__((noinline, used)) long victim_other(long number)
{
	__asm__ volatile("" : "+r"(number));
	return -number;
}

static int ended(void)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };

	return poll(&input, 1, 0) > 0;
}

int main(int argc, char **argv)
{
	long magic = atol(argv[1]), from = atol(argv[2]), count = atol(argv[3]), done = 0;
	int file = memfd_create("victim", 0);
	struct timespec pause = { .tv_nsec = argc > 4 ? atol(argv[4]) * 1000 : 0 };

	while (done < count && !(pause.tv_nsec && ended())) {
		prctl(magic, from + done, 0, 0, 0);
		victim_touch(from + done);
		lseek(file, magic << 32 | (from + done), SEEK_SET);
		done++;
		if (pause.tv_nsec)
			nanosleep(&pause, NULL);
	}
	printf("%ld\n", done);
	return 0;
}
