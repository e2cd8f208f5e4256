#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core.h"

#define IOVECS 1024 /* UIO_MAXIOV */
#define PAGE_WORDS 512
#define PAGE_BYTES (PAGE_WORDS * 8)
#define COMPARED_BYTES (16 * PAGE_BYTES)
#define POPULATE_WRITE 23 /* MADV_POPULATE_WRITE; older headers lack it */

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

int crd_memory_differing(int mem_fd, const struct crd_run *runs, size_t n, const void *buffer, unsigned char *map,
                         struct crd_error *err)
{
    const unsigned char *wanted = buffer;
    unsigned char found[COMPARED_BYTES];
    size_t page = 0;

    for (size_t i = 0; i < n; i++) {
        for (struct crd_run part = {runs[i].address, 0}; part.address < runs[i].address + runs[i].length;
             part.address += part.length) {
            size_t rest = runs[i].address + runs[i].length - part.address;
            part.length = rest < COMPARED_BYTES ? rest : COMPARED_BYTES;
            if (transfer(mem_fd, &part, found, false, err))
                return -1;
            for (size_t at = 0; at < part.length; at += PAGE_BYTES, wanted += PAGE_BYTES, page++)
                if (memcmp(found + at, wanted, PAGE_BYTES))
                    map[page / 8] |= (unsigned char)(1 << page % 8);
        }
    }
    return 0;
}

/* All runs, as many in one call as it takes; continued where a call ended early (it moves no more than 2 GiB). */
static int transfer_all(int pid, const struct crd_run *runs, size_t n, unsigned char *buffer, bool writing,
                        struct crd_error *err)
{
    struct iovec remote[IOVECS];
    size_t offset = 0; /* of the first run, what has been done */

    while (n) {
        size_t total = 0;
        size_t many = n < IOVECS ? n : IOVECS;
        for (size_t i = 0; i < many; i++) {
            size_t skipped = i ? 0 : offset;
            remote[i] = (struct iovec){(void *)(uintptr_t)(runs[i].address + skipped), runs[i].length - skipped};
            total += remote[i].iov_len;
        }
        struct iovec local = {buffer, total};
        ssize_t done = writing ? process_vm_writev(pid, &local, 1, remote, many, 0)
                               : process_vm_readv(pid, &local, 1, remote, many, 0);
        if (done < 0 || (done == 0 && total))
            return crd_fail(err, writing ? "process_vm_writev" : "process_vm_readv", pid, runs->address + offset);
        buffer += done;
        for (offset += (size_t)done; n && offset >= runs->length; n--)
            offset -= (runs++)->length;
    }
    return 0;
}

int crd_process_read(int pid, const struct crd_run *runs, size_t n, void *buffer, struct crd_error *err)
{
    return transfer_all(pid, runs, n, buffer, false, err);
}

int crd_process_write(int pid, const struct crd_run *runs, size_t n, const void *buffer, struct crd_error *err)
{
    return transfer_all(pid, runs, n, (unsigned char *)(uintptr_t)buffer, true, err);
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

void crd_memory_own(const struct crd_run *runs, size_t n)
{
    for (size_t i = 0; i < n && runs[i].length; i++)
        madvise((void *)(uintptr_t)runs[i].address, runs[i].length, POPULATE_WRITE);
}
