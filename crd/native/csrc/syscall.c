#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

int crd_syscall(long number, const uint64_t *a, int64_t *ret_ret, struct crd_error *err)
{
    *ret_ret = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    return *ret_ret < 0 ? crd_fail(err, "syscall", 0, 0) : 0;
}
