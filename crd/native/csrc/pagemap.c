#include "core.h"
#include "scan.h"

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
