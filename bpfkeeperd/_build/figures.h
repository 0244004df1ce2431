
/* ---- what can only be told of one map or program after the other ---- */

struct keeper_counting {
	int fd;
	uint32_t key_size, value_size;	/* as of struct keeper_reader */
	uint32_t max_entries;
	uint32_t used_size, cpu_size;	/* bytes of a value that are one, and from one CPU's to the next */
	bool nonzero;		/* entries with a byte that is not zero are counted, not all */
	bool keys_only;
	bool repeats;		/* the kernel's batches of this type can begin anew */
	uint64_t most_ns;	/* then it gives up */
	const volatile bool *stop;	/* set by another thread: give up; or NULL */
	bool batch;		/* as of struct keeper_reader; says in the end whether it was so */
	uint64_t entries;	/* what came of it, no more than max_entries */
	uint32_t restarts;	/* how often a key that vanished sent the kernel back */
};

/* -ETIME, -ECANCELED: it was given up. -ELOOP: the map changes faster than it can be counted. */
int keeper_count(struct keeper_counting *counting);

struct keeper_memory {
	int32_t error;	/* an errno, or 0; EINVAL: what is pinned there is no map */
	uint32_t id;
	uint64_t bytes;
};

/* What the kernel accounts to each of the maps that are pinned at these paths. */
void keeper_maps_memory(const char *const *paths, uint32_t count, struct keeper_memory *out);
