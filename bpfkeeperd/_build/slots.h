
/*
 * The filled slots of a map-in-map or a program array as a stream of records, each key_size bytes of
 * key and the ID, a u32. Of an array the first nr_slots slots are looked at; with nr_slots 0 the keys
 * are walked, which can give a key twice while others delete. It ends after most records. The caller
 * frees *stream, which may be NULL.
 */
int keeper_slots(int fd, uint32_t key_size, uint32_t nr_slots, uint32_t most, char **stream,
		 size_t *size);
