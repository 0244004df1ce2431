/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/* Perf events, and the links of tracing that need more than a program and a target. */

/*
 * perf_event_open(2), close-on-exec. place is a function or a binary for the types kprobe and
 * uprobe, else NULL; offset is what belongs to it. often is a frequency in Hz or a period.
 */
int keeper_perf_event_open(uint32_t type, uint64_t config, const char *place, uint64_t offset,
			   uint64_t often, bool is_frequency, int pid, int cpu);

/* A link of a perf event, which holds the event: its descriptor can be closed. */
int keeper_perf_link(int prog_fd, int event_fd, uint64_t cookie);

/* map_fd < 0: the iterator goes through no map. */
int keeper_iter_link(int prog_fd, int map_fd);

int keeper_kprobe_multi_link(int prog_fd, const char **symbols, uint32_t count, bool at_return);
/* pid 0: all processes. */
int keeper_uprobe_multi_link(int prog_fd, const char *path, const uint64_t *offsets,
			     uint64_t cookie, uint32_t count, uint32_t pid, bool at_return);

/*
 * What stands for places in a binary that is this very file: the same number for the same ones;
 * never 0 or 1. Links carry it as their cookie.
 */
uint64_t keeper_place(uint64_t device, uint64_t inode, const uint64_t *offsets, uint32_t count);
