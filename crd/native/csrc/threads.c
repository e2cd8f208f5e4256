#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ptrace.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

#define NANOSECONDS 1000000000LL
#define RSEQ_CS 8    /* offset into struct rseq */
#define SECTIONS 64 /* at once */
#define GET_THREAD_AREA 25                        /* PTRACE_GET_THREAD_AREA of asm/ptrace-abi.h */
#define GET_SYSCALL_USER_DISPATCH_CONFIG 0x4211   /* PTRACE_, linux/ptrace.h of 6.4 */
#define FIRST_DESCRIPTOR 12                       /* GDT_ENTRY_TLS_MIN */
#define DESCRIPTORS 3
#define DESCRIPTOR_WORDS 4

static long request(int what, const struct crd_thread *thread, uint64_t address, const void *data)
{
    return syscall(SYS_ptrace, (long)what, (long)thread->tid, address, data);
}

/* Note the error of a request; whether there was none. */
static int note(struct crd_thread *thread, long result)
{
    if (result < 0)
        thread->error = errno;
    return result >= 0;
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NANOSECONDS + now.tv_nsec;
}

void crd_threads_seize(struct crd_thread *threads, size_t n, uint64_t options)
{
    for (size_t i = 0; i < n; i++)
        note(&threads[i], request(PTRACE_SEIZE, &threads[i], 0, (void *)(uintptr_t)options));
    for (size_t i = 0; i < n; i++)
        if (!threads[i].error)
            request(PTRACE_INTERRUPT, &threads[i], 0, NULL); /* ESRCH: it has ended, as the wait will say */
}

int crd_threads_wait(struct crd_thread *threads, size_t n, int64_t timeout_ns, struct crd_error *err)
{
    int64_t deadline = now_ns() + timeout_ns;

    for (size_t i = n; i-- > 0;) { /* when the last one has stopped, so have most others: one sleep for many */
        int64_t left = deadline - now_ns();
        int found;
        if (threads[i].error)
            continue;
        if (crd_wait(threads[i].tid, left > 0 ? left : 0, &found, &threads[i].status, err)) {
            if (err->error_number != ECHILD)
                return -1;
            threads[i].error = ECHILD;
        }
    }
    return 0;
}

static void read_rseq(struct crd_thread *thread)
{
    struct ptrace_rseq_configuration rseq;

    if (request(PTRACE_GET_RSEQ_CONFIGURATION, thread, sizeof rseq, &rseq) < 0)
        return; /* a kernel before 5.13, or without rseq */
    thread->rseq_address = rseq.rseq_abi_pointer;
    thread->rseq_bytes = rseq.rseq_abi_size;
    thread->rseq_signature = rseq.signature;
}

/* What the kernel cannot tell stays 0, which is off: dispatch before 6.4, descriptors without IA32_EMULATION. */
static void read_dispatch_and_descriptors(struct crd_thread *thread)
{
    request(GET_SYSCALL_USER_DISPATCH_CONFIG, thread, sizeof thread->dispatch, thread->dispatch);
    for (int i = 0; i < DESCRIPTORS; i++)
        if (request(GET_THREAD_AREA, thread, FIRST_DESCRIPTOR + (uint64_t)i, thread->descriptors + i * DESCRIPTOR_WORDS) < 0)
            return;
}

/* The sections of rseq that threads may be in, many in one call. It ends at a stale pointer: the kernel would kill a thread
 * that relied on it, so there is no section. */
static void read_sections(struct crd_thread *threads, size_t n, int pid)
{
    struct iovec local[SECTIONS], remote[SECTIONS];
    struct crd_thread *some[SECTIONS];
    struct crd_thread *next = threads;

    while (next < threads + n) {
        size_t many = 0;
        for (; next < threads + n && many < SECTIONS; next++)
            if (!next->error && next->rseq_address) {
                local[many] = (struct iovec){&next->rseq_section, sizeof next->rseq_section};
                remote[many] = (struct iovec){(void *)(uintptr_t)(next->rseq_address + RSEQ_CS), local[many].iov_len};
                some[many++] = next;
            }
        ssize_t bytes = process_vm_readv(pid, local, many, remote, many, 0);
        size_t done = bytes > 0 ? (size_t)bytes / sizeof next->rseq_section : 0;
        if (done < many)
            next = some[done] + 1;
    }
}

static void read_thread(struct crd_thread *thread, unsigned char *xstate, size_t *xstate_bytes)
{
    struct iovec registers = {thread->registers, sizeof thread->registers};
    struct iovec extended = {xstate, *xstate_bytes};
    struct ptrace_peeksiginfo_args queue = {.nr = 1};
    unsigned char siginfo[128];
    long queued = 0;

    if (note(thread, request(PTRACE_GETREGSET, thread, NT_PRSTATUS, &registers)) &&
        note(thread, request(PTRACE_GETREGSET, thread, NT_X86_XSTATE, &extended)) &&
        note(thread, request(PTRACE_GETSIGMASK, thread, sizeof thread->mask, &thread->mask)) &&
        note(thread, queued = request(PTRACE_PEEKSIGINFO, thread, (uint64_t)(uintptr_t)&queue, siginfo)) &&
        note(thread, syscall(SYS_get_robust_list, thread->tid, &thread->robust_list, &thread->robust_list_bytes))) {
        thread->queued = queued > 0;
        read_rseq(thread);
        read_dispatch_and_descriptors(thread);
        *xstate_bytes = extended.iov_len;
    }
}

static void read_file(const struct crd_thread_room *room, size_t i)
{
    char *text = (char *)room->statuses + i * room->status_stride;
    ssize_t length = pread(room->status_fds[i], text, room->status_stride - 1, 0);

    /* A file that fills the room may have been cut off. */
    text[length > 0 && (size_t)length < room->status_stride - 1 ? length : 0] = 0;
    room->threads[i].unconfined = strstr(text, "\nSeccomp:\t0\n") != NULL;
}

/* Whether one more file is the caller's to read. */
static bool take_one(struct crd_thread_room *room)
{
    return __atomic_fetch_sub(&room->left, 1, __ATOMIC_RELAXED) - 1 < room->n;
}

static void *read_from_the_last(void *of)
{
    struct crd_thread_room *room = of;

    for (size_t i = room->n; take_one(room);)
        read_file(room, --i);
    return NULL;
}

void crd_threads_await_files(struct crd_thread_room *room)
{
    for (size_t i = 0; room->n && take_one(room);)
        read_file(room, i++);
    if (room->has_helper)
        pthread_join((pthread_t)room->helper, NULL);
    room->has_helper = false;
    room->n = 0;
}

int crd_threads_read(struct crd_thread *threads, size_t n, int pid, struct crd_thread_room *room, struct crd_error *err)
{
    pthread_t helper;

    room->threads = threads;
    room->n = room->left = n;
    if (n > 1) {
        if ((errno = pthread_create(&helper, NULL, read_from_the_last, room))) {
            room->n = 0;
            return crd_fail(err, "pthread_create", 0, 0);
        }
        room->helper = (uint64_t)helper;
        room->has_helper = true;
    }
    for (size_t i = 0; i < n; i++) {
        size_t bytes = room->xstate_stride;
        if (!threads[i].error)
            read_thread(&threads[i], room->xstates + i * room->xstate_stride, &bytes);
        if (!threads[i].error)
            room->xstate_bytes = bytes;
    }
    read_sections(threads, n, pid);
    return 0;
}

/* The text of an open file, appended; what there is no room for is only counted. */
static int append(int fd, char *text, size_t size, size_t *length)
{
    char rest[4096];
    ssize_t found;

    do {
        bool fits = *length < size;
        found = read(fd, fits ? text + *length : rest, fits ? size - *length : sizeof rest);
        *length += found > 0 ? (size_t)found : 0;
    } while (found > 0);
    return found < 0 && errno != ESRCH ? -1 : 0;
}

int crd_threads_children(const struct crd_thread *threads, size_t n, int pid, char *text, size_t size, size_t *length_ret,
                         struct crd_error *err)
{
    char path[64];

    *length_ret = 0;
    for (size_t i = 0; i < n; i++) {
        snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, threads[i].tid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 && (errno == ENOENT || errno == ESRCH))
            continue;
        if (fd < 0 || append(fd, text, size, length_ret)) {
            crd_fail(err, "read children", threads[i].tid, 0);
            if (fd >= 0)
                close(fd);
            return -1;
        }
        close(fd);
    }
    return 0;
}

int crd_thread_notices(const struct crd_thread *thread)
{
    struct user_regs_struct registers;

    memcpy(&registers, thread->registers, sizeof registers);
    return thread->rseq_section || ((int64_t)registers.orig_rax >= 0 && (int64_t)registers.rax == -EINTR);
}

size_t crd_threads_obstructed(const struct crd_thread *threads, size_t n)
{
    size_t i = 0;

    while (i < n && threads[i].status >> 8 > SIGRTMAX && crd_stub_carries(threads[i].registers))
        i++;
    return i;
}

void crd_threads_detach(struct crd_thread *threads, size_t n, const int *signals)
{
    for (size_t i = n; i-- > 0;)
        if (!threads[i].error)
            note(&threads[i], request(PTRACE_DETACH, &threads[i], 0, (void *)(uintptr_t)signals[i]));
}
