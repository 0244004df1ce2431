
/* Has the kernel count runs of programs for as long as the descriptor is open (5.8). */
int keeper_enable_stats(void);

struct keeper_prog_stats {
	int32_t error;		/* of a pin: an errno, or 0; EINVAL: it is no program's */
	uint32_t id, type;
	uint32_t instructions;	/* of the program as it runs */
	uint32_t verified;	/* how many the verifier went through (5.16), 0 where it is not told */
	uint64_t run_count, run_time_ns;
	uint64_t misses;	/* not run, because it ran on that CPU already (5.12) */
	uint64_t load_time_ns;	/* since boot, suspended time included */
	uint64_t memory_bytes;	/* 0 unless it was asked for */
};
int keeper_prog_stats(int fd, struct keeper_prog_stats *out);
/* Of the programs pinned at these paths. Their memory costs as much again. */
void keeper_pinned_prog_stats(const char *const *paths, uint32_t count, bool memory,
			      struct keeper_prog_stats *out);
