// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
/* The bundled sockops object, in as many versions as one likes: VARIANT is all that differs. */
#include "../../bpf/sockops.bpf.c"

/* Called by nobody: the program is the same, its file is another one. */
__attribute__((noinline)) int variant(void)
{
	return VARIANT;
}
