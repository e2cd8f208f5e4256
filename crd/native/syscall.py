"""syscall(2), and the numbers of the x86-64 calls that crd makes, here and in other processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.native.check import call
from crd.native.ffi import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence


class NR:
    """System-call numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)."""

    WRITE = 1
    CLOSE = 3
    MMAP = 9
    MPROTECT = 10
    MUNMAP = 11
    RT_SIGACTION = 13
    RT_SIGPROCMASK = 14
    MADVISE = 28
    SHMGET = 29
    SHMAT = 30
    SHMCTL = 31
    SEMGET = 64
    SEMCTL = 66
    SHMDT = 67
    MSGGET = 68
    MSGSND = 69
    MSGRCV = 70
    MSGCTL = 71
    DUP2 = 33
    GETITIMER = 36
    SETITIMER = 38
    GETPID = 39
    GETPPID = 110
    CONNECT = 42
    LISTEN = 50
    SOCKETPAIR = 53
    GETSOCKOPT = 55
    CLONE = 56
    WAIT4 = 61
    MBIND = 237
    SET_MEMPOLICY = 238
    EXIT_GROUP = 231
    PPOLL = 271
    SECCOMP = 317
    FCNTL = 72
    FCHDIR = 81
    UMASK = 95
    SETPGID = 109
    SETSID = 112
    SETGROUPS = 116
    SETRESUID = 117
    SETRESGID = 119
    SETFSUID = 122
    SETFSGID = 123
    CAPSET = 126
    RT_SIGQUEUEINFO = 129
    SIGALTSTACK = 131
    PERSONALITY = 135
    MODIFY_LDT = 154
    PRCTL = 157
    ARCH_PRCTL = 158
    CHROOT = 161
    SET_TID_ADDRESS = 218
    RESTART_SYSCALL = 219
    TIMER_CREATE = 222
    TIMER_SETTIME = 223
    TIMER_GETTIME = 224
    TIMER_GETOVERRUN = 225
    TIMER_DELETE = 226
    SET_ROBUST_LIST = 273
    DUP3 = 292
    RT_TGSIGQUEUEINFO = 297
    OPENAT = 257
    PIPE2 = 293
    KCMP = 312
    MREMAP = 25
    USERFAULTFD = 323
    MEMBARRIER = 324
    MLOCK2 = 325
    RSEQ = 334
    PIDFD_OPEN = 434
    CLONE3 = 435
    CLOSE_RANGE = 436
    PIDFD_GETFD = 438
    IOPRIO_SET = 251
    IOPRIO_GET = 252
    MQ_OPEN = 240
    MQ_UNLINK = 241
    MQ_TIMEDSEND = 242
    MQ_TIMEDRECEIVE = 243
    MQ_GETSETATTR = 245
    EPOLL_WAIT = 232
    EPOLL_CTL = 233
    EPOLL_CREATE1 = 291
    INOTIFY_ADD_WATCH = 254
    INOTIFY_INIT1 = 294
    OPEN_BY_HANDLE_AT = 304
    SIGNALFD4 = 289
    TIMERFD_CREATE = 283
    TIMERFD_SETTIME = 286
    TIMERFD_GETTIME = 287
    SCHED_SETATTR = 314
    SCHED_GETATTR = 315


def syscall(number: int, *arguments: int | bytearray | bytes) -> int:
    """Make a system call; buffers are passed by address.

    Raises:
        NativeError: it returned an error.
    """
    kept = [ffi.from_buffer(value) if isinstance(value, bytes | bytearray) else value for value in arguments]
    words = [int(ffi.cast("uintptr_t", value)) if not isinstance(value, int) else value & (1 << 64) - 1
             for value in kept]
    result = ffi.new("int64_t *")
    call(lib.crd_syscall, number, words + [0] * (6 - len(words)), result)
    return int(result[0])


def address(buffer: bytes | bytearray) -> int:
    """Return where a buffer is in memory, for a struct that points to it; the caller keeps it meanwhile."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Return a close-on-exec duplicate of another process's descriptor (pidfd_getfd(2), 5.6)."""
    return syscall(NR.PIDFD_GETFD, pidfd, fd, 0)


class Kcmp:
    """kcmp(2): compares kernel objects of processes."""

    def __call__(self, pid1: int, pid2: int, kind: int, index1: int = 0, index2: int | bytes = 0) -> int:
        """Compare those of two: 0 = the same, 1 and 2 = an order, 3 = neither.

        ``index2`` may be a struct that the kind asks for.

        Raises:
            NativeError: one of them has ended, or is not ours to look at.
        """
        return syscall(NR.KCMP, pid1, pid2, kind, index1, index2)

    def places(self, kind: int, groups: Sequence[int], pids: Sequence[int]) -> list[int]:
        """Return the place among ``groups`` of the process that has its object in common with each of ``pids``, or -1.

        Args:
            kind: of object.
            groups: processes in the kernel's order of their objects, no two with the same.
            pids: any processes.
        """
        found = ffi.new("int32_t[]", len(pids))
        lib.crd_kcmp_places(kind, ffi.new("int32_t[]", list(groups)), len(groups), ffi.new("int32_t[]", list(pids)),
                            len(pids), found)
        return list(found)


kcmp = Kcmp()
