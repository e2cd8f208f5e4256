#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

int crd_syscall(long number, const uint64_t *a, int64_t *ret_ret, struct crd_error *err)
{
    *ret_ret = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    return *ret_ret < 0 ? crd_fail(err, "syscall", 0, 0) : 0;
}

static int32_t crd_kcmp_place(int kind, const int32_t *groups, size_t n_groups, int32_t pid)
{
    size_t low = 0, high = n_groups;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        switch (syscall(SYS_kcmp, (long)pid, (long)groups[middle], (long)kind, 0L, 0L)) {
        case 0:
            return (int32_t)middle;
        case 1:
            high = middle;
            break;
        case 2:
            low = middle + 1;
            break;
        default: /* one of them has ended, or is not ours to look at */
            return -1;
        }
    }
    return -1;
}

void crd_kcmp_places(int kind, const int32_t *groups, size_t n_groups, const int32_t *pids, size_t n,
                     int32_t *places_ret)
{
    for (size_t i = 0; i < n; i++)
        places_ret[i] = crd_kcmp_place(kind, groups, n_groups, pids[i]);
}
