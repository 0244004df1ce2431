// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <fcntl.h>
#include <time.h>

#define COUNT_BYTES (256u << 10)	/* what is read at once fits into a CPU's cache */
#define COUNT_TRIES 32

/* ---- keys that were seen ---- */

#define SEEN_MAX 4096
#define SEEN_SLOTS (2 * SEEN_MAX)

/*
 * Hashes of keys that were read: of all while there are few, then of a half, a quarter and so on. The
 * order of keys stays as it is, so one that comes again says that the kernel began anew, and after
 * that all come again: a sample will do.
 */
struct seen {
	uint64_t slots[SEEN_SLOTS];
	uint64_t skipped;	/* hashes with one of these bits are not kept */
	uint32_t count;
};

static uint64_t hash_of(const char *key, uint32_t size)
{
	uint64_t hash = size, word;

	for (; size; key += sizeof(word), size -= sizeof(word)) {
		word = 0;
		memcpy(&word, key, size < sizeof(word) ? size : sizeof(word));
		hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
		hash ^= hash >> 32;
		if (size < sizeof(word))
			break;
	}
	return hash ? hash : 1;
}

/* Whether it was there already. */
static bool seen_put(struct seen *seen, uint64_t hash)
{
	uint32_t slot = hash >> 32 & (SEEN_SLOTS - 1);

	for (; seen->slots[slot]; slot = (slot + 1) & (SEEN_SLOTS - 1))
		if (seen->slots[slot] == hash)
			return true;
	seen->slots[slot] = hash;
	seen->count++;
	return false;
}

static int seen_thin_out(struct seen *seen)
{
	uint64_t *former = malloc(sizeof(seen->slots));

	if (!former)
		return -ENOMEM;
	while (seen->count >= SEEN_MAX) {
		seen->skipped = seen->skipped << 1 | 1;
		memcpy(former, seen->slots, sizeof(seen->slots));
		memset(seen->slots, 0, sizeof(seen->slots));
		seen->count = 0;
		for (uint32_t slot = 0; slot < SEEN_SLOTS; slot++)
			if (former[slot] && !(former[slot] & seen->skipped))
				seen_put(seen, former[slot]);
	}
	free(former);
	return 0;
}

/* -EAGAIN when one of these keys was seen before. */
static int seen_again(struct seen *seen, const char *keys, uint32_t key_size, uint32_t count)
{
	int err = 0;

	for (; count && !err; count--, keys += key_size) {
		uint64_t hash = hash_of(keys, key_size);

		if (hash & seen->skipped)
			continue;
		if (seen_put(seen, hash))
			return -EAGAIN;
		if (seen->count >= SEEN_MAX)
			err = seen_thin_out(seen);
	}
	return err;
}

/* ---- counting ---- */

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static bool any_set(const char *bytes, uint32_t size)
{
	uint64_t word, all = 0;

	for (; size >= sizeof(word); bytes += sizeof(word), size -= sizeof(word)) {
		memcpy(&word, bytes, sizeof(word));
		if (word)
			return true;
	}
	for (; size; size--)
		all |= (unsigned char)*bytes++;
	return all;
}

/* What rounds a CPU's value up to 8 bytes is no part of it: whoever writes can leave anything there. */
static uint32_t nonzero_of(const struct keeper_counting *c, const char *values, uint32_t count)
{
	uint32_t found = 0;

	for (; count; count--, values += c->value_size)
		for (uint32_t at = 0; at < c->value_size; at += c->cpu_size)
			if (any_set(values + at, c->used_size)) {
				found++;
				break;
			}
	return found;
}

static int count_once(struct keeper_counting *c, struct keeper_reader *r, struct seen *seen,
		      uint64_t until_ns)
{
	c->entries = 0;
	while (!r->ended) {
		uint32_t count;
		int err;

		if (c->stop && *c->stop)
			return -ECANCELED;
		if (now_ns() >= until_ns)
			return -ETIME;
		err = keeper_reader_some(r, &count);
		c->batch = r->batch;
		if (!err && (!r->batch || c->repeats))
			err = seen_again(seen, r->keys, r->key_size, count);
		if (err)
			return err;
		c->entries += c->nonzero ? nonzero_of(c, r->values, count) : count;
	}
	if (c->entries > c->max_entries)	/* some went and others came meanwhile */
		c->entries = c->max_entries;
	return 0;
}

int keeper_count(struct keeper_counting *c)
{
	uint64_t until_ns = now_ns() + c->most_ns;
	struct seen *seen = malloc(sizeof(*seen));
	int err = -ENOMEM;

	c->restarts = 0;
	while (seen) {
		struct keeper_reader reader = {
			.fd = c->fd,
			.key_size = c->key_size,
			.value_size = c->value_size,
			.batch = c->batch,
			.keys_only = c->keys_only,
			.left = 2 * (uint64_t)c->max_entries,
		};

		memset(seen, 0, sizeof(*seen));
		err = keeper_reader_begin(&reader, COUNT_BYTES, c->max_entries);
		if (!err)
			err = count_once(c, &reader, seen, until_ns);
		keeper_reader_end(&reader);
		if (err != -EAGAIN && err != -ELOOP)
			break;
		err = -ELOOP;
		if (++c->restarts == COUNT_TRIES)
			break;
	}
	free(seen);
	return err;
}

/* ---- memory ---- */

/* The number after a name in the text of a fdinfo. */
static bool fdinfo_number(const char *text, const char *name, uint64_t *number)
{
	const char *found = strstr(text, name);

	if (!found || (found != text && found[-1] != '\n'))
		return false;
	*number = strtoull(found + strlen(name), NULL, 10);
	return true;
}

/* What fdinfo says of a map or program; -EINVAL if it has no ID of that name. */
static int fdinfo_memory(int fd, const char *id_name, uint64_t *id, uint64_t *bytes)
{
	char path[40], text[4096];
	ssize_t size;
	int info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return -errno;
	size = read(info, text, sizeof(text) - 1);
	if (size < 0)
		size = -errno;
	close(info);
	if (size < 0)
		return size;
	text[size] = '\0';
	if (!fdinfo_number(text, id_name, id) || !fdinfo_number(text, "memlock:", bytes))
		return -EINVAL;
	return 0;
}

void keeper_maps_memory(const char *const *paths, uint32_t count, struct keeper_memory *out)
{
	for (uint32_t i = 0; i < count; i++) {
		int fd = keeper_open_pin_for_reading(paths[i]);
		uint64_t id = 0, bytes = 0;
		int err = fd < 0 ? fd : fdinfo_memory(fd, "map_id:", &id, &bytes);

		if (fd >= 0)
			close(fd);
		out[i] = (struct keeper_memory){ .error = -err, .id = id, .bytes = bytes };
	}
}
