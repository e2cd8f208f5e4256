#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

#define NANOSECONDS 1000000000LL

int crd_ptrace(int request, int tid, uint64_t address, uint64_t data, const char *operation, struct crd_error *err)
{
    /* syscall(2), since glibc's wrapper rewrites the PEEK requests. */
    if (syscall(SYS_ptrace, (long)request, (long)tid, address, data) < 0)
        return crd_fail(err, operation, tid, address);
    return 0;
}

int crd_ptrace_buffer(int request, int tid, uint64_t address, void *buffer, const char *operation,
                      struct crd_error *err)
{
    return crd_ptrace(request, tid, address, (uint64_t)(uintptr_t)buffer, operation, err);
}

int crd_regset_get(int tid, int type, void *buffer, size_t length, size_t *length_ret, struct crd_error *err)
{
    struct iovec iov = {buffer, length};

    if (crd_ptrace_buffer(PTRACE_GETREGSET, tid, (uint64_t)type, &iov, "ptrace GETREGSET", err))
        return -1;
    *length_ret = iov.iov_len;
    return 0;
}

int crd_regset_set(int tid, int type, const void *buffer, size_t length, struct crd_error *err)
{
    struct iovec iov = {(void *)(uintptr_t)buffer, length};

    return crd_ptrace_buffer(PTRACE_SETREGSET, tid, (uint64_t)type, &iov, "ptrace SETREGSET", err);
}

int crd_siginfo_peek(int tid, int shared, uint64_t offset, int n, void *buffer, int *n_ret, struct crd_error *err)
{
    struct ptrace_peeksiginfo_args args = {
        .off = offset, .flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0, .nr = n};
    long found = syscall(SYS_ptrace, PTRACE_PEEKSIGINFO, (long)tid, &args, buffer);

    if (found < 0)
        return crd_fail(err, "ptrace PEEKSIGINFO", tid, 0);
    *n_ret = (int)found;
    return 0;
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NANOSECONDS + now.tv_nsec;
}

/* Wait for SIGCHLD, which is blocked, or until the time has passed. */
static bool wait_for_news(const sigset_t *sigchld, int64_t deadline, bool forever)
{
    int64_t left = forever ? NANOSECONDS : deadline - now_ns();

    if (left <= 0)
        return false;
    struct timespec timeout = {left / NANOSECONDS, left % NANOSECONDS};
    sigtimedwait(sigchld, NULL, &timeout);
    return true;
}

int crd_wait(int tid, int64_t timeout_ns, int *tid_ret, int *status_ret, struct crd_error *err)
{
    bool forever = timeout_ns < 0;
    int64_t deadline = forever ? 0 : now_ns() + timeout_ns;
    sigset_t sigchld;
    sigset_t before;
    int found;

    /* The common case first: it has stopped already. */
    *tid_ret = found = waitpid(tid, status_ret, __WALL | WNOHANG);
    if (found > 0)
        return 0;
    if (found < 0 && errno != EINTR)
        return crd_fail(err, "waitpid", tid, 0);

    sigemptyset(&sigchld);
    sigaddset(&sigchld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &sigchld, &before);
    do {
        found = waitpid(tid, status_ret, __WALL | WNOHANG);
    } while ((found == 0 || (found < 0 && errno == EINTR)) && wait_for_news(&sigchld, deadline, forever));
    int saved = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    errno = saved;
    if (found < 0)
        return crd_fail(err, "waitpid", tid, 0);
    *tid_ret = found;
    return 0;
}

int crd_robust_list_get(int tid, uint64_t *head_ret, uint64_t *length_ret, struct crd_error *err)
{
    if (syscall(SYS_get_robust_list, tid, head_ret, length_ret) < 0)
        return crd_fail(err, "get_robust_list", tid, 0);
    return 0;
}
