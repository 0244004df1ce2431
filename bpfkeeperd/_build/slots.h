
/*
 * The filled slots of a map-in-map or a program array as a stream of records, each key_size bytes of
 * key and the ID, a u32. Of an array the first most slots are looked at, of a hash most keys, which
 * can come twice while others delete. The caller frees *stream, which may be NULL.
 */
int keeper_slots(int fd, uint32_t key_size, bool array, uint32_t most, char **stream, size_t *size);
