/* PAGEMAP_SCAN (ioctl_pagemap_scan(2), linux/fs.h of 6.7 and newer), which older headers lack. */
#ifndef CRD_SCAN_H
#define CRD_SCAN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "core.h"

struct scan_region {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};

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

enum { SCAN_PROTECT = 1 << 0, SCAN_ONLY_IF_NOTED = 1 << 1 };
enum { IS_WRITTEN = 1 << 1, IS_FILE = 1 << 2, IS_PRESENT = 1 << 3, IS_SWAPPED = 1 << 4, IS_ZERO = 1 << 5 };

#define SCAN_REGIONS 512

/* Prepare a look at what is left of an area: from *address (0: its beginning), at most as many regions as room says. */
void crd_scan_begin(struct scan_argument *argument, const struct crd_run *area, uint64_t *address,
                    struct scan_region *regions, size_t room);

/* Add a run that comes after the others, or overlaps the last one: two looks may tell some pages twice. */
void crd_runs_add(struct crd_runs *runs, uint64_t start, uint64_t end);

#endif
