#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "core.h"
#include "scan.h"

/* linux/userfaultfd.h, 6.7 and newer; older headers lack it. */
#define WP_ASYNC (1 << 15)

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

int crd_pages_changed(int pagemap_fd, int dense, const struct crd_run *areas, size_t n, size_t *area_ret,
                      uint64_t *address_ret, int *errors, struct crd_runs *changed, struct crd_error *err)
{
    struct scan_region regions[SCAN_REGIONS];

    for (; *area_ret < n; ++*area_ret, *address_ret = 0) {
        struct scan_argument argument = {
            .flags = SCAN_PROTECT | SCAN_ONLY_IF_NOTED,
            .category_mask = IS_WRITTEN,
            .category_anyof_mask = dense ? 0 : IS_PRESENT | IS_SWAPPED, /* without, the kernel has a short cut */
            .return_mask = IS_WRITTEN,
        };
        do {
            if (changed->n == changed->capacity)
                return 0;
            crd_scan_begin(&argument, &areas[*area_ret], address_ret, regions, changed->capacity - changed->n);
            int found = ioctl(pagemap_fd, SCAN, &argument);
            if (found < 0 && errno != EPERM)
                return crd_fail(err, "ioctl PAGEMAP_SCAN", 0, *address_ret);
            if (found < 0) {
                errors[*area_ret] = errno;
                break;
            }
            for (int i = 0; i < found; i++)
                crd_runs_add(changed, regions[i].start, regions[i].end);
            *address_ret = argument.walk_end;
        } while (*address_ret < argument.end);
    }
    return 0;
}
