
/* ---- what stands in the slots of a map-in-map or a program array ---- */

/* Appends the slot of a key, if something stands there; returns 1, 0 or -errno. */
static int slot_append(struct buffer *out, int fd, const void *key, uint32_t key_size)
{
	uint32_t id;
	int err = bpf_map_lookup_elem(fd, key, &id);

	if (err)
		return err == -ENOENT ? 0 : err;
	err = buffer_append(out, key, key_size) ?: buffer_append(out, &id, sizeof(id));
	return err ? err : 1;
}

static int slots_of_array(struct buffer *out, int fd, uint32_t nr_slots, uint32_t most)
{
	int found;

	for (uint32_t slot = 0; slot < nr_slots && most; slot++, most -= found) {
		found = slot_append(out, fd, &slot, sizeof(slot));
		if (found < 0)
			return found;
	}
	return 0;
}

/* A key that is deleted meanwhile sends the kernel back to the first one: hence "most" keys. */
static int slots_of_hash(struct buffer *out, int fd, uint32_t key_size, uint32_t most)
{
	char *keys = malloc(2 * (size_t)key_size), *key = NULL, *next = keys;
	int err = keys ? 0 : -ENOMEM;

	while (!err && most--) {
		err = bpf_map_get_next_key(fd, key, next);
		if (!err) {
			int found = slot_append(out, fd, next, key_size);

			err = found < 0 ? found : 0;
		}
		key = next;
		next = key == keys ? keys + key_size : keys;
	}
	free(keys);
	return err == -ENOENT ? 0 : err;
}

int keeper_slots(int fd, uint32_t key_size, uint32_t nr_slots, uint32_t most, char **stream,
		 size_t *size)
{
	struct buffer out = {};
	int err = nr_slots ? slots_of_array(&out, fd, nr_slots, most) :
			     slots_of_hash(&out, fd, key_size, most);

	if (err) {
		free(out.data);
		return err;
	}
	*stream = out.data;
	*size = out.size;
	return 0;
}
