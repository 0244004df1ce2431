// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* ---- entries of maps ---- */

#define KERNEL_ENOTSUPP 524
#define PLACE_BYTES 8	/* a batch's place is a key, or a number of 4 bytes */
#define BATCH_RETRIES 100
#define WALK_STEPS (64u << 10)

static int reader_room(struct keeper_reader *r, uint32_t entries)
{
	free(r->keys);
	free(r->values);
	r->capacity = entries;
	r->keys = malloc((size_t)entries * r->key_size + 1);
	r->values = malloc((size_t)entries * r->value_size + 1);
	return r->keys && r->values ? 0 : -ENOMEM;
}

int keeper_reader_begin(struct keeper_reader *r, size_t bytes, uint32_t most)
{
	size_t entry = (size_t)r->key_size + r->value_size;
	size_t fitting = bytes / (entry ? entry : 1);

	r->place = calloc(2, (size_t)r->key_size + PLACE_BYTES);
	if (!r->place)
		return -ENOMEM;
	r->next = r->place + r->key_size + PLACE_BYTES;
	fitting = fitting < most ? fitting : most;
	return reader_room(r, fitting ? fitting : 1);
}

void keeper_reader_end(struct keeper_reader *r)
{
	free(r->keys);
	free(r->values);
	free(r->place < r->next ? r->place : r->next);
	r->keys = r->values = r->place = r->next = NULL;
	r->ended = true;
}

static void reader_moves_on(struct keeper_reader *r)
{
	char *place = r->place;

	r->place = r->next;
	r->next = place;
}

static int read_batch(struct keeper_reader *r, uint32_t *count)
{
	int err = -EINTR;

	for (int tries = 0; tries < BATCH_RETRIES; tries++) {
		*count = r->capacity;
		err = bpf_map_lookup_batch(r->fd, r->begun ? r->place : NULL, r->next, r->keys,
					   r->values, count, NULL);
		if (err == -ENOSPC) {	/* a bucket of a hash holds more than there is room for */
			if (r->capacity > UINT32_MAX / 2 || reader_room(r, 2 * r->capacity))
				return -ENOMEM;
		} else if (err != -EINTR || *count) {	/* else an entry went while it was read */
			break;
		}
	}
	if (!err || (err == -EINTR && *count)) {
		r->begun = true;
		reader_moves_on(r);
		return 0;
	}
	if (err == -ENOENT) {
		r->ended = true;
		return 0;
	}
	*count = 0;
	if (!r->begun && (err == -EINVAL || err == -EOPNOTSUPP || err == -KERNEL_ENOTSUPP)) {
		r->batch = false;
		return 0;
	}
	return err == -EINTR || err == -ENOSPC ? -ELOOP : err;
}

/*
 * The next key is asked for before this one's value, when this one was still there a moment ago:
 * the kernel answers a key that is gone with the first key.
 */
static int read_walk(struct keeper_reader *r, uint32_t *count)
{
	char *keys = r->keys, *values = r->values;
	int err, following;

	*count = 0;
	if (!r->begun) {
		r->begun = true;
		err = bpf_map_get_next_key(r->fd, NULL, r->place);
		r->ended = err == -ENOENT;
		if (err && !r->ended)
			return err;
	}
	for (uint32_t steps = WALK_STEPS; steps && !r->ended && *count < r->capacity; steps--) {
		if (!r->left--) {
			r->left = 0;
			return -ELOOP;
		}
		following = bpf_map_get_next_key(r->fd, r->place, r->next);
		if (following && following != -ENOENT)
			return following;
		err = r->keys_only ? 0 : bpf_map_lookup_elem(r->fd, r->place, values);
		if (err && err != -ENOENT)
			return err;
		if (!err) {
			memcpy(keys, r->place, r->key_size);
			keys += r->key_size;
			values += r->value_size;
			++*count;
		}
		r->ended = following == -ENOENT;
		reader_moves_on(r);
	}
	return 0;
}

int keeper_reader_some(struct keeper_reader *r, uint32_t *count)
{
	int err;

	*count = 0;
	if (r->ended)
		return 0;
	if (!r->batch)
		return read_walk(r, count);
	err = read_batch(r, count);
	if (err)
		return err;
	if (r->left < *count)
		return -ELOOP;
	r->left -= *count;
	return 0;
}
