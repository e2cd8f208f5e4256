struct crd_page_region {
    uint64_t start;
    uint64_t end;
    uint64_t categories; /* PAGE_IS_* */
};

/* PAGEMAP_SCAN (ioctl_pagemap_scan(2)). Pages with (categories ^ inverted) containing all of `required` and, unless 0,
 * any of `any_of`. *walk_end_ret: where to go on. *n_ret: regions found. */
int crd_pagemap_scan(int pagemap_fd, uint64_t start, uint64_t end, uint64_t inverted, uint64_t required,
                     uint64_t any_of, uint64_t returned, struct crd_page_region *regions, size_t max_regions,
                     uint64_t *walk_end_ret, size_t *n_ret, struct crd_error *err);
