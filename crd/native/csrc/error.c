#include <errno.h>
#include <stdio.h>

#include "core.h"

int crd_fail(struct crd_error *err, const char *operation, int tid, uint64_t address)
{
    err->error_number = errno;
    err->tid = tid;
    err->address = address;
    snprintf(err->operation, sizeof err->operation, "%s", operation);
    return -1;
}
