#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

#define PAGE_WORDS 512

/* One run through /proc/PID/mem, continued after short transfers. */
static int transfer(int fd, const struct crd_run *run, unsigned char *buffer, bool writing, struct crd_error *err)
{
    size_t done = 0;

    while (done < run->length) {
        off_t at = (off_t)(run->address + done);
        ssize_t n = writing ? pwrite(fd, buffer + done, run->length - done, at)
                            : pread(fd, buffer + done, run->length - done, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            errno = ESRCH; /* the memory map is gone with its process */
        if (n <= 0)
            return crd_fail(err, writing ? "write memory" : "read memory", 0, run->address + done);
        done += (size_t)n;
    }
    return 0;
}

int crd_memory_read(int mem_fd, const struct crd_run *runs, size_t n, void *buffer, struct crd_error *err)
{
    unsigned char *to = buffer;

    for (size_t i = 0; i < n; to += runs[i++].length)
        if (transfer(mem_fd, &runs[i], to, false, err))
            return -1;
    return 0;
}

int crd_memory_write(int mem_fd, const struct crd_run *runs, size_t n, const void *buffer, struct crd_error *err)
{
    unsigned char *from = (unsigned char *)(uintptr_t)buffer;

    for (size_t i = 0; i < n; from += runs[i++].length)
        if (transfer(mem_fd, &runs[i], from, true, err))
            return -1;
    return 0;
}

void crd_nonzero_pages(const void *buffer, size_t n_pages, unsigned char *map)
{
    const unsigned char *page = buffer;

    memset(map, 0, (n_pages + 7) / 8);
    for (size_t i = 0; i < n_pages; i++, page += PAGE_WORDS * 8)
        /* All bytes are zero if the first is and each equals the next. */
        if (page[0] || memcmp(page, page + 1, PAGE_WORDS * 8 - 1))
            map[i / 8] |= (unsigned char)(1 << i % 8);
}
