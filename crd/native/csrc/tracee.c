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
#define GLANCES 100 /* at a tracee that runs on another processor: soon done, and quicker than to sleep in between */

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

/* waitpid(2) that does not consume the stop before the delivery of a signal. If the tracer dies, the kernel delivers the
 * signal of a stop that nobody has consumed, and drops that of one that somebody has: wait_task_stopped (kernel/exit.c)
 * clears its exit_code. *tid_ret is 0 if there is nothing to report. */
static int reap(int tid, int options, int *tid_ret, int *status_ret)
{
    siginfo_t info = {0};

    if (waitid(tid > 0 ? P_PID : P_ALL, (id_t)tid, &info, options | WEXITED | WNOWAIT | __WALL) < 0)
        return -1;
    *tid_ret = info.si_pid;
    if (info.si_pid == 0)
        return 0;
    if (info.si_code == CLD_TRAPPED && info.si_status <= SIGRTMAX) {
        *status_ret = info.si_status << 8 | 0x7f;
        return 0;
    }
    *tid_ret = waitpid(info.si_pid, status_ret, __WALL | WNOHANG);
    return *tid_ret < 0 ? -1 : 0;
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
    int failed;

    /* The common case first: it has stopped already. */
    if (reap(tid, WNOHANG, tid_ret, status_ret))
        return crd_fail(err, "waitid", tid, 0);
    if (*tid_ret)
        return 0;

    sigemptyset(&sigchld);
    sigaddset(&sigchld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &sigchld, &before);
    do {
        failed = reap(tid, WNOHANG, tid_ret, status_ret);
    } while (!failed && !*tid_ret && wait_for_news(&sigchld, deadline, forever));
    if (failed)
        crd_fail(err, "waitid", tid, 0);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return failed;
}

/* The next stop of a tracee, or its end. */
static int await_stop(int tid, int *status_ret, struct crd_error *err)
{
    int found = 0;

    for (int i = 0; !found; i++)
        if (reap(tid, i < GLANCES ? WNOHANG : 0, &found, status_ret) && errno != EINTR)
            return crd_fail(err, "waitid", tid, 0);
    return 0;
}

int crd_syscall_stops(int tid, int n, int *status_ret, struct crd_error *err)
{
    int signal_number = 0;

    while (n > 0) {
        if (crd_ptrace(PTRACE_SYSCALL, tid, 0, (uint64_t)signal_number, "ptrace SYSCALL", err) ||
            await_stop(tid, status_ret, err))
            return -1;
        bool of_signal = WIFSTOPPED(*status_ret) && *status_ret >> 8 <= SIGRTMAX;
        signal_number = of_signal && WSTOPSIG(*status_ret) == SIGSTOP ? SIGSTOP : 0;
        if (!WIFSTOPPED(*status_ret) || (of_signal && !signal_number))
            return 0;
        n -= *status_ret >> 8 == (SIGTRAP | 0x80);
    }
    return 0;
}

int crd_robust_list_get(int tid, uint64_t *head_ret, uint64_t *length_ret, struct crd_error *err)
{
    if (syscall(SYS_get_robust_list, tid, head_ret, length_ret) < 0)
        return crd_fail(err, "get_robust_list", tid, 0);
    return 0;
}

int crd_seccomp_filter_get(int tid, int index, uint64_t *instructions, int *n_ret, uint64_t *flags_ret,
                           struct crd_error *err)
{
    struct seccomp_metadata about = {.filter_off = (uint64_t)index};
    long n = syscall(SYS_ptrace, PTRACE_SECCOMP_GET_FILTER, (long)tid, (long)index, instructions);

    *n_ret = 0;
    if (n < 0 && errno == ENOENT)
        return 0;
    if (n < 0)
        return crd_fail(err, "ptrace SECCOMP_GET_FILTER", tid, 0);
    if (syscall(SYS_ptrace, PTRACE_SECCOMP_GET_METADATA, (long)tid, sizeof(about), &about) < 0)
        return crd_fail(err, "ptrace SECCOMP_GET_METADATA", tid, 0);
    *n_ret = (int)n;
    *flags_ret = about.flags;
    return 0;
}
