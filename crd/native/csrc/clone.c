#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"

/* CLONE_VFORK: the child has executed or ended when we go on. */
static int exec_failed(pid_t child, struct crd_error *err)
{
    int status;

    if (waitpid(child, &status, WNOHANG) != child)
        return 0;
    errno = WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
    return crd_fail(err, "execveat of the vessel", child, 0);
}

/* Until it is traced nothing else would end it with us. A parent that died before the request shows in getppid. */
static void die_with(pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(ESRCH);
}

int crd_vessel_spawn(int vessel_fd, int pid, int *pid_ret, struct crd_error *err)
{
    pid_t wanted = pid;
    struct clone_args args = {
        .flags = CLONE_VFORK,
        .exit_signal = SIGCHLD,
        .set_tid = pid ? (uint64_t)(uintptr_t)&wanted : 0,
        .set_tid_size = pid ? 1 : 0,
    };
    char *const empty[] = {NULL};
    const pid_t parent = getpid();
    const uint64_t all = UINT64_MAX;
    uint64_t before;

    /* The vessel inherits the mask: nothing may reach it before it is what it shall be. By syscall(2), since glibc's
     * sigprocmask leaves two signals of its own unblocked. */
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
    long child = syscall(SYS_clone3, &args, sizeof args);
    if (child == 0) {
        die_with(parent);
        syscall(SYS_execveat, vessel_fd, "", empty, empty, AT_EMPTY_PATH);
        _exit(errno);
    }
    int failed = child < 0 ? crd_fail(err, "clone3", pid, 0) : exec_failed((pid_t)child, err);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
    *pid_ret = (int)child;
    return failed;
}
