// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/*
 * Changes a map from two threads, each on a CPU of its own, until standard input ends and something
 * was written LEAST times, and taken away as often if it ever is.
 *
 *   hammer LEAST table MAP PERCENT PERCENT KEY_SIZE VALUE [KEY | KEY=VALUE]...
 *   hammer LEAST queue MAP PERCENT PERCENT
 *   hammer LEAST ring MAP PROGRAM
 *
 * A table's threads write and delete keys by chance, each with its share of writes; of a key of
 * KEY_SIZE bytes the last four are the number and the others the length of a prefix, a value is a
 * number of four bytes and zeros. A queue's threads push and pop. Of a ring buffer one runs the
 * program that fills it and one reads. Prints how often something was written, taken away, and refused
 * for want of room or of something to take.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 2
#define KEYS_MAX 4096
#define SIZE_MAX_BYTES (1 << 16)

struct thread {
	unsigned int number;
	unsigned int percent;
	unsigned long written, taken, refused;
};

static volatile struct thread threads[THREADS];
static volatile int stop;
static unsigned long least;
static int map, program;
static size_t size; /* of a key */
static unsigned int nr_keys;
static uint32_t keys[KEYS_MAX], values[KEYS_MAX];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static long bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static uint32_t chance(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	return *state ^= *state << 5;
}

static void pin_to(unsigned int number)
{
	cpu_set_t all, one;
	int cpu = 0, seen = 0;

	if (sched_getaffinity(0, sizeof(all), &all))
		die("hammer: cannot get the CPUs");
	number %= CPU_COUNT(&all);
	for (;; cpu++)
		if (CPU_ISSET(cpu, &all) && seen++ == (int)number)
			break;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (pthread_setaffinity_np(pthread_self(), sizeof(one), &one))
		die("hammer: cannot stay on a CPU");
}

static int enough(void)
{
	unsigned long written = threads[0].written + threads[1].written;
	unsigned long taken = threads[0].taken + threads[1].taken;

	if (!stop)
		return 0;
	return written >= least &&
	       (taken >= least || (threads[0].percent == 100 && threads[1].percent == 100));
}

/* A sockmap that has no socket to take away calls that invalid. */
static void done(volatile struct thread *thread, long result, volatile unsigned long *count)
{
	if (!result)
		(*count)++;
	else if (errno == E2BIG || errno == ENOSPC || errno == ENOENT || errno == EBUSY ||
		 errno == ENOMEM || errno == EDEADLK || errno == ETIMEDOUT || errno == EAGAIN ||
		 (errno == EINVAL && count == &thread->taken))
		thread->refused++;
	else
		die("hammer: cannot change the map");
}

static void change_table(volatile struct thread *thread, uint32_t *state)
{
	static __thread char value[SIZE_MAX_BYTES];
	uint32_t key[2] = { (size - 4) * 8 }, place = chance(state) % nr_keys;
	union bpf_attr attr = { .map_fd = map };

	memcpy((char *)key + size - 4, &keys[place], 4);
	memcpy(value, &values[place], 4);
	attr.key = (uintptr_t)key;
	attr.value = (uintptr_t)value;
	if (chance(state) % 100 < thread->percent) {
		done(thread, bpf(BPF_MAP_UPDATE_ELEM, &attr), &thread->written);
	} else {
		attr.value = 0;
		done(thread, bpf(BPF_MAP_DELETE_ELEM, &attr), &thread->taken);
	}
}

static void change_queue(volatile struct thread *thread, uint32_t *state)
{
	static __thread char value[SIZE_MAX_BYTES];
	union bpf_attr attr = { .map_fd = map, .value = (uintptr_t)value };
	uint32_t number = chance(state);

	memcpy(value, &number, 4);
	if (chance(state) % 100 < thread->percent)
		done(thread, bpf(BPF_MAP_UPDATE_ELEM, &attr), &thread->written);
	else
		done(thread, bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &attr), &thread->taken);
}

static void fill_ring(volatile struct thread *thread)
{
	union bpf_attr attr = { .test = { .prog_fd = program } };

	if (bpf(BPF_PROG_TEST_RUN, &attr))
		die("hammer: cannot run the program");
	if (attr.test.retval)
		thread->refused++;
	else
		thread->written++;
}

static void read_ring(volatile struct thread *thread, unsigned long *consumer, const unsigned long *producer)
{
	unsigned long position = __atomic_load_n(producer, __ATOMIC_ACQUIRE);

	if (position == *consumer)
		return;
	thread->taken++;
	__atomic_store_n(consumer, position, __ATOMIC_RELEASE);
}

static void *change(void *argument)
{
	volatile struct thread *thread = argument;
	uint32_t state = 2463534242u + thread->number;
	unsigned long *consumer = NULL, *producer = NULL;
	long page = sysconf(_SC_PAGESIZE);

	pin_to(thread->number);
	if (program) {
		consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
		producer = mmap(NULL, page, PROT_READ, MAP_SHARED, map, page);
		if (consumer == MAP_FAILED || producer == MAP_FAILED)
			die("hammer: cannot map the ring buffer");
	}
	while (!enough()) {
		if (program && thread->number == 0)
			fill_ring(thread);
		else if (program)
			read_ring(thread, consumer, producer);
		else if (nr_keys)
			change_table(thread, &state);
		else
			change_queue(thread, &state);
	}
	return NULL;
}

static void read_keys(char **words, unsigned int number, uint32_t value)
{
	if (number > KEYS_MAX) {
		fputs("hammer: too many keys\n", stderr);
		exit(1);
	}
	for (nr_keys = 0; nr_keys < number; nr_keys++) {
		char *other = strchr(words[nr_keys], '=');

		keys[nr_keys] = atoi(words[nr_keys]);
		values[nr_keys] = other ? (uint32_t)atoi(other + 1) : value;
	}
}

int main(int argc, char **argv)
{
	unsigned long written = 0, taken = 0, refused = 0;
	struct pollfd input = { .fd = 0, .events = POLLIN };
	pthread_t ids[THREADS];

	if (argc < 5) {
		fputs("usage: see the source\n", stderr);
		return 2;
	}
	least = atoi(argv[1]);
	map = atoi(argv[3]);
	if (!strcmp(argv[2], "ring")) {
		program = atoi(argv[4]);
	} else if (argc > 5) {
		threads[0].percent = atoi(argv[4]);
		threads[1].percent = atoi(argv[5]);
	}
	if (!strcmp(argv[2], "table") && argc > 8) {
		size = atoi(argv[6]);
		read_keys(argv + 8, argc - 8, atoi(argv[7]));
	}
	for (unsigned int i = 0; i < THREADS; i++) {
		threads[i].number = i;
		if (pthread_create(&ids[i], NULL, change, (void *)&threads[i]))
			die("hammer: cannot start a thread");
	}
	poll(&input, 1, -1);
	stop = 1;
	for (unsigned int i = 0; i < THREADS; i++) {
		pthread_join(ids[i], NULL);
		written += threads[i].written;
		taken += threads[i].taken;
		refused += threads[i].refused;
	}
	printf("%lu %lu %lu\n", written, taken, refused);
	return 0;
}
