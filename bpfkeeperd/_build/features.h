/* SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause */
/* What libbpf believes of the kernel. */

/*
 * Loads bpf/features.bpf.c, for which libbpf asks the kernel what it can do, and looks at what came of
 * it. 0, or a negative errno: it could not be done. missing is then NULL, or what libbpf may not believe
 * the kernel to have although it has it.
 */
int keeper_learn_features(const void *object, size_t size, const char **missing);
