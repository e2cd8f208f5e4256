/* Ascending runs of pages, of which no two touch. */
struct crd_runs {
    struct crd_run *runs;
    size_t n;
    size_t capacity; /* 512 at least; that of both lists is the same where there are two */
    uint64_t bytes;
};

/* Find the pages of areas that hold anything of the process's own: in memory or swapped out, not those of a file, nor the
 * shared page of zeros, nor guard pages (MADV_GUARD_INSTALL, 6.13) and other marks. And find the guard pages; kernels before
 * 6.15 tell of them only to whom has CAP_SYS_ADMIN.
 *
 * scan: by PAGEMAP_SCAN (ioctl_pagemap_scan(2), 6.7), otherwise by the entries of the page map.
 *
 * Begins at *area_ret, at *address_ret of it (0: its beginning), and leaves there where it has come to when there is no room
 * for more; all is done when *area_ret is n. */
int crd_pages_own(int pagemap_fd, int scan, const struct crd_run *areas, size_t n, size_t *area_ret, uint64_t *address_ret,
                  struct crd_runs *own, struct crd_runs *guards, struct crd_error *err);

/* Tell which of some pages hold nothing now, not even a mark: gone[i] of page i. ESRCH: the process has ended. */
int crd_pages_gone(int pid, int pagemap_fd, const uint64_t *pages, size_t n, unsigned char *gone, struct crd_error *err);
