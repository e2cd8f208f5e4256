#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <sys/ioctl.h>

#include "core.h"
#include "scan.h"

/* linux/userfaultfd.h, 6.7 and newer; older headers lack it. */
#define WP_ASYNC (1 << 15)

#define REGIONS 512

int crd_userfaultfd_begin(int userfaultfd, struct crd_error *err)
{
    struct uffdio_api api = {.api = UFFD_API, .features = WP_ASYNC};

    return ioctl(userfaultfd, UFFDIO_API, &api) < 0 ? crd_fail(err, "ioctl UFFDIO_API", 0, 0) : 0;
}

int crd_userfaultfd_watch(int userfaultfd, const struct crd_run *area, struct crd_error *err)
{
    struct uffdio_register asked = {.range = {area->address, area->length}, .mode = UFFDIO_REGISTER_MODE_WP};

    return ioctl(userfaultfd, UFFDIO_REGISTER, &asked) < 0 ? crd_fail(err, "ioctl UFFDIO_REGISTER", 0, area->address)
                                                           : 0;
}

static void add(struct crd_runs *runs, uint64_t start, uint64_t end)
{
    struct crd_run *last = runs->n ? &runs->runs[runs->n - 1] : NULL;

    if (last && last->address + last->length == start)
        last->length += end - start;
    else
        runs->runs[runs->n++] = (struct crd_run){start, end - start};
    runs->bytes += end - start;
}

/* How many regions surely fit. */
static size_t room(const struct crd_pages *pages)
{
    size_t used = pages->written.n;

    if (used < pages->swapped.n)
        used = pages->swapped.n;
    if (used < pages->others.n)
        used = pages->others.n;
    if (used < pages->others_swapped.n)
        used = pages->others_swapped.n;
    return pages->capacity - used;
}

static void sort_in(const struct crd_page_region *region, bool noted, struct crd_pages *pages)
{
    bool written = !noted || region->categories & IS_WRITTEN;

    if (region->categories & IS_SWAPPED)
        add(written ? &pages->swapped : &pages->others_swapped, region->start, region->end);
    else if (!written)
        add(&pages->others, region->start, region->end);
    else if (noted || !(region->categories & IS_ZERO)) /* what is noted may have held something else before */
        add(&pages->written, region->start, region->end);
}

int crd_pages_find(int pagemap_fd, int noted, const struct crd_run *areas, size_t n, int *errors, struct crd_pages *pages,
                   size_t *area_ret, uint64_t *address_ret, struct crd_error *err)
{
    struct crd_page_region regions[REGIONS];

    for (; *area_ret < n; ++*area_ret, *address_ret = 0) {
        uint64_t end = areas[*area_ret].address + areas[*area_ret].length;
        if (!*address_ret)
            *address_ret = areas[*area_ret].address;
        while (*address_ret < end) {
            size_t most = room(pages);
            struct scan_argument argument = {
                .size = sizeof argument,
                .flags = noted ? SCAN_PROTECT | SCAN_ONLY_IF_NOTED : 0,
                .start = *address_ret,
                .end = end,
                .vec = (uint64_t)(uintptr_t)regions,
                .vec_len = most < REGIONS ? most : REGIONS,
                .category_inverted = noted ? 0 : IS_FILE,
                .category_mask = noted ? 0 : IS_FILE,
                .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
                .return_mask = IS_WRITTEN | IS_SWAPPED | IS_ZERO,
            };
            if (!most)
                return 0;
            int found = ioctl(pagemap_fd, SCAN, &argument);
            if (found < 0 && (!noted || errno != EPERM))
                return crd_fail(err, "ioctl PAGEMAP_SCAN", 0, *address_ret);
            if (found < 0) {
                errors[*area_ret] = errno;
                break;
            }
            for (int i = 0; i < found; i++)
                sort_in(&regions[i], noted, pages);
            *address_ret = argument.walk_end;
        }
    }
    return 0;
}
