
/* ---- what stands in the slots of a map-in-map or a program array ---- */

/* Appends the slot of a key, if something stands there. */
static int slot_append(struct buffer *out, int fd, const void *key, uint32_t key_size)
{
	uint32_t id;
	int err = bpf_map_lookup_elem(fd, key, &id);

	if (err)
		return err == -ENOENT ? 0 : err;
	return buffer_append(out, key, key_size) ?: buffer_append(out, &id, sizeof(id));
}

static int slots_of_array(struct buffer *out, int fd, uint32_t most)
{
	int err = 0;

	for (uint32_t slot = 0; slot < most && !err; slot++)
		err = slot_append(out, fd, &slot, sizeof(slot));
	return err;
}

/* A key that is deleted meanwhile sends the kernel back to the first one: hence "most" keys. */
static int slots_of_hash(struct buffer *out, int fd, uint32_t key_size, uint32_t most)
{
	char *keys = malloc(2 * (size_t)key_size), *key = NULL, *next = keys;
	int err = keys ? 0 : -ENOMEM;

	while (!err && most--) {
		err = bpf_map_get_next_key(fd, key, next);
		if (!err)
			err = slot_append(out, fd, next, key_size);
		key = next;
		next = key == keys ? keys + key_size : keys;
	}
	free(keys);
	return err == -ENOENT ? 0 : err;
}

int keeper_slots(int fd, uint32_t key_size, bool array, uint32_t most, char **stream, size_t *size)
{
	struct keeper_map_info info;
	struct buffer out = {};
	int err = keeper_map_info(fd, &info);

	/* Other maps would be read past the end of what there is room for. */
	if (!err && (info.value_size != sizeof(uint32_t) || info.key_size != key_size || !key_size))
		err = -EINVAL;
	if (!err)
		err = array ? slots_of_array(&out, fd, most)
			    : slots_of_hash(&out, fd, key_size, most);
	if (err) {
		free(out.data);
		return err;
	}
	*stream = out.data;
	*size = out.size;
	return 0;
}
