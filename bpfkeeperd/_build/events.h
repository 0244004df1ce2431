/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/* A descriptor that is readable when something comes, goes or is renamed in a watched directory. */
int keeper_watch_open(void);
/* Returns the number of the watch; watching a directory again gives the same number. */
int keeper_watch_add(int fd, const char *directory);
int keeper_watch_remove(int fd, int number);
