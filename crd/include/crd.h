/* checkpoint and restart, as system calls of programs that `crctl run` started. Link nothing; x86-64 Linux.
 *
 *     long crid = crd_checkpoint(0, fd, 0);
 *
 * returns a crid > 0 once the image of this process and its descendants is whole in fd, 0 in the process that a restart
 * has made of the image, and -1 with errno otherwise. `python3 -m crd.selfckpt` says where this file is. */
#ifndef CRD_H
#define CRD_H

#include <sys/types.h>
#include <unistd.h>

#if !defined(__linux__) || !defined(__x86_64__) || defined(__ILP32__)
#error "checkpoint and restart have numbers on x86-64 Linux only"
#endif

#define CRD_NR_CHECKPOINT 387
#define CRD_NR_RESTART 388

#ifdef __cplusplus
extern "C" {
#endif

extern long syscall(long number, ...);

/* Write an image of a process (0: the caller) and its descendants to fd.
 *
 * errno: EINVAL flags is not 0 · EBADF fd is not open for writing, or the process has a file open that cannot be saved ·
 * ESRCH no such process · EPERM it is not yours · EBUSY it cannot be saved as it is now · EPIPE ENOSPC EIO the image could
 * not be written · EINTR a signal came before it was this call's turn · ENOSYS the program was not started by crctl run,
 * the daemon is away, or its memory cannot be saved */
static inline long crd_checkpoint(pid_t pid, int fd, unsigned long flags)
{
    return syscall(CRD_NR_CHECKPOINT, (long)pid, (long)fd, flags);
}

/* Become what is in the image that is read from fd: this process ends with status 0 when the tasks of the image are made,
 * and they run on under their own numbers. Only for root (CAP_SYS_ADMIN); crid is not looked at. Returns only to say why not.
 * Where the image needs the caller's own number it must be a file: it is checked, and then there is no way back.
 *
 * errno: EINVAL flags is not 0, or fd has no image that can be restarted here · EPIPE it ends too early · EBADF fd is not
 * open for reading · EPERM not root · EBUSY a process has one of its numbers · ENOENT a file of it is missing · ENOSYS */
static inline long crd_restart(int crid, int fd, unsigned long flags)
{
    return syscall(CRD_NR_RESTART, (long)crid, (long)fd, flags);
}

#ifdef __cplusplus
}
#endif

#endif
