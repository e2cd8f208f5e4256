#include <stdbool.h>

#include "core.h"
#include "scan.h"

#define REGIONS 512

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

/* Add a region behind the others; of what PAGEMAP_SCAN reports twice nothing. Whether there is room. */
static bool add(const struct crd_page_region *region, struct crd_copy *copy)
{
    struct crd_run *last = copy->n ? &copy->runs[copy->n - 1] : NULL;
    uint64_t end = last ? last->address + last->length : 0;
    uint64_t start = region->start > end ? region->start : end;

    if (start >= region->end)
        return true;
    if (region->end - start > copy->max_bytes - copy->bytes || (start != end && copy->n == CRD_COPY_RUNS))
        return false;
    if (last && start == end)
        last->length += region->end - start;
    else
        copy->runs[copy->n++] = (struct crd_run){start, region->end - start};
    copy->bytes += region->end - start;
    return true;
}

/* Find the pages of an area; whether all of them could be added. */
static int find(int pagemap_fd, const struct crd_run *area, struct crd_copy *copy, bool *complete, struct crd_error *err)
{
    struct crd_page_region regions[REGIONS];
    uint64_t end = area->address + area->length;
    size_t n;

    *complete = true;
    for (uint64_t at = area->address; *complete && at < end;) {
        if (crd_pagemap_scan(pagemap_fd, at, end, IS_FILE | IS_ZERO, IS_FILE | IS_ZERO, IS_PRESENT | IS_SWAPPED, IS_PRESENT,
                             regions, REGIONS, &at, &n, err))
            return -1;
        for (size_t i = 0; *complete && i < n; i++)
            *complete = regions[i].categories & IS_PRESENT && add(&regions[i], copy);
    }
    return 0;
}

int crd_pages_copy(int pagemap_fd, int mem_fd, const struct crd_run *areas, size_t n, struct crd_copy *copy,
                   struct crd_error *err)
{
    bool complete = true;

    copy->n = copy->bytes = 0;
    copy->complete = false;
    for (size_t i = 0; complete && i < n; i++)
        if (find(pagemap_fd, &areas[i], copy, &complete, err))
            return -1;
    copy->complete = complete;
    return complete ? crd_memory_read(mem_fd, copy->runs, copy->n, copy->content, err) : 0;
}
