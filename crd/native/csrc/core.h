/* The public C interface: what crd does with tasks, in exact terms.
 *
 * Results and errors never share a channel: a function returns 0, or -1 with *err filled in; what it found goes through
 * pointers named *_ret. Nothing here prints, calls back, or, but for the page index and zstd, allocates or keeps state. A ptrace
 * session belongs to the one thread that seized the tracee, so nothing here needs a lock. */
#ifndef CRD_CORE_H
#define CRD_CORE_H

#include <stddef.h>
#include <stdint.h>

#include "../cdef/core.h"

#include "../cdef/clone.h"
#include "../cdef/files.h"
#include "../cdef/frames.h"
#include "../cdef/memory.h"
#include "../cdef/pagemap.h"
#include "../cdef/numbers.h"
#include "../cdef/pages.h"
#include "../cdef/stream.h"
#include "../cdef/stubs.h"
#include "../cdef/syscall.h"
#include "../cdef/threads.h"
#include "../cdef/tracee.h"
#include "../cdef/tracking.h"

/* Fill in *err from errno and return -1. */
int crd_fail(struct crd_error *err, const char *operation, int tid, uint64_t address);

#endif
