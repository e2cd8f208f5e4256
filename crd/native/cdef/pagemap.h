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

#define CRD_COPY_RUNS 1024

/* Pages, packed one after the other in content. */
struct crd_copy {
    unsigned char *content;
    size_t max_bytes;
    size_t bytes;
    struct crd_run runs[CRD_COPY_RUNS];
    size_t n;
    int complete; /* else there was no room, or some page is not there, and only its entry tells why */
};

/* Copy the pages of areas that are a process's own: present, no page of a file, not the shared zero page. */
int crd_pages_copy(int pagemap_fd, int mem_fd, const struct crd_run *areas, size_t n, struct crd_copy *copy,
                   struct crd_error *err);
