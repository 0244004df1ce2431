
/*
 * Reads a map's entries once, a batch at a time. The kernel's batches show an entry that is there all
 * the while exactly once (LPM tries apart). Types without batches are walked from key to key, which
 * can show it twice or miss it when others are deleted meanwhile: a key that vanishes sends the
 * kernel back to the first one.
 */
struct keeper_reader {
	int fd;
	uint32_t key_size, value_size;	/* of one entry as it is read: value_size is that of all CPUs */
	bool batch;			/* cleared when the kernel has no batches for this type */
	bool keys_only;			/* a walk does not look whether there is a value */
	uint64_t left;			/* how many entries and keys may still be read */
	/* What follows is the reader's own, cleared by the caller. */
	bool begun, ended;
	uint32_t capacity;
	char *keys, *values;		/* what was read last */
	char *place, *next;
};

/* Room for as many entries as fit into so many bytes, but one at least and no more than most. */
int keeper_reader_begin(struct keeper_reader *reader, size_t bytes, uint32_t most);
/* Reads some; sets count, which may be 0 before the end. -ELOOP: it changes faster than that. */
int keeper_reader_some(struct keeper_reader *reader, uint32_t *count);
/* A second call does nothing. */
void keeper_reader_end(struct keeper_reader *reader);
