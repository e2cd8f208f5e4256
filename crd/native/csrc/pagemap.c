#include <errno.h>
#include <sys/ioctl.h>

#include "core.h"

/* struct pm_scan_arg of linux/fs.h, 6.7 and newer; older headers lack it. */
struct scan_argument {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};
#define SCAN _IOWR('f', 16, struct scan_argument)

int crd_pagemap_scan(int pagemap_fd, uint64_t start, uint64_t end, uint64_t inverted, uint64_t required,
                     uint64_t any_of, uint64_t returned, struct crd_page_region *regions, size_t max_regions,
                     uint64_t *walk_end_ret, size_t *n_ret, struct crd_error *err)
{
    struct scan_argument argument = {
        .size = sizeof argument,
        .start = start,
        .end = end,
        .vec = (uint64_t)(uintptr_t)regions,
        .vec_len = max_regions,
        .category_inverted = inverted,
        .category_mask = required,
        .category_anyof_mask = any_of,
        .return_mask = returned,
    };
    int found = ioctl(pagemap_fd, SCAN, &argument);

    if (found < 0)
        return crd_fail(err, "ioctl PAGEMAP_SCAN", 0, start);
    *n_ret = (size_t)found;
    *walk_end_ret = argument.walk_end;
    return 0;
}
