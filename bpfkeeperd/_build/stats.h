
/* Has the kernel count runs of programs for as long as the descriptor is open (5.8). */
int keeper_enable_stats(void);

struct keeper_prog_stats {
	uint64_t run_count;
	uint32_t instructions;	/* of the program as it runs */
	uint32_t verified;	/* how many the verifier went through (5.16), 0 where it is not told */
};
int keeper_prog_stats(int fd, struct keeper_prog_stats *out);
