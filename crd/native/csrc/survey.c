#define _GNU_SOURCE
#include <elf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <time.h>

#include "core.h"

#define NANOSECONDS 1000000000LL
#define LOOK_AGAIN_NS 20000
#define GLANCES 8   /* before we sleep in between */
#define PARTY 16    /* threads that are sent, and called back, together */
#define WORDS 7     /* of a call */

/* The end of the stub's slot (arch/x86_64/stubs.S), behind the way home. */
struct task {
    uint64_t calls, n_calls, results, done;
    int64_t seconds, nanoseconds;
};

static void fill_data(const struct crd_survey *survey, size_t n_calls, uint64_t scratch, unsigned char *data)
{
    uint64_t call[WORDS];

    for (size_t i = 0; i < n_calls; i++) {
        for (size_t j = 0; j < WORDS; j++)
            call[j] = survey->calls[i * WORDS + j] + (survey->relative[i * WORDS + j] ? scratch : 0);
        memcpy(data + i * sizeof call, call, sizeof call);
    }
}

void crd_survey_fill(const struct crd_survey *survey, unsigned char *slots, unsigned char *data)
{
    struct crd_code code = crd_stub_survey_code();

    for (size_t i = 0; i < survey->n; i++) {
        size_t n_calls = i ? survey->n_calls_others : survey->n_calls;
        size_t offset = survey->head_bytes + (i ? survey->first_bytes + (i - 1) * survey->data_bytes : 0);
        uint64_t calls = survey->data + offset;
        uint64_t scratch = calls + n_calls * WORDS * sizeof(uint64_t);
        unsigned char *end = slots + i * survey->slot_bytes + code.length;
        struct task task = {calls, n_calls, scratch, survey->data + i * sizeof(uint32_t),
                            survey->patience_ns / NANOSECONDS, survey->patience_ns % NANOSECONDS};

        memcpy(end - code.length, code.start, code.length);
        memcpy(end - sizeof task, &task, sizeof task);
        crd_stub_home(survey->threads[i].registers, survey->threads[i].mask, end - sizeof task - CRD_HOME_BYTES);
        fill_data(survey, n_calls, scratch, data + offset);
    }
}

static int set_registers(const struct crd_thread *thread, const void *registers, struct crd_error *err)
{
    return crd_regset_set(thread->tid, NT_PRSTATUS, registers, sizeof thread->registers, err);
}

static int set_mask(const struct crd_thread *thread, uint64_t mask, struct crd_error *err)
{
    return crd_ptrace_buffer(PTRACE_SETSIGMASK, thread->tid, sizeof mask, &mask, "ptrace SETSIGMASK", err);
}

/* Have a stopped thread run its stub. The one SETREGSET is the moment from which on it comes home alone. */
static int send(const struct crd_survey *survey, const struct crd_thread *thread, size_t i, struct crd_error *err)
{
    struct user_regs_struct there;

    memcpy(&there, thread->registers, sizeof there);
    there.rip = survey->slots + i * survey->slot_bytes;
    there.orig_rax = UINT64_MAX;
    /* The mask not before the registers: from there on it is the stub that puts it back. */
    return set_registers(thread, &there, err) || set_mask(thread, UINT64_MAX, err) ||
                   crd_ptrace(PTRACE_CONT, thread->tid, 0, 0, "ptrace CONT", err)
               ? -1
               : 0;
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NANOSECONDS + now.tv_nsec;
}

/* A thread on its way: its survey, its number in it, and until when it waits for us. */
struct traveller {
    struct crd_survey *survey;
    size_t i;
    bool sent;
    bool done;
    int64_t deadline;
};

/* Look at n threads of the same survey, one after the other; whether all have done. */
static bool have_done(struct traveller *some, size_t n)
{
    const struct crd_survey *survey = some->survey;
    uint32_t said[PARTY] = {0};
    size_t bytes = (survey->until ? 1 : n) * sizeof *said;
    struct iovec local = {said, bytes};
    struct iovec remote = {(void *)(uintptr_t)(survey->data + (survey->until ? 0 : some->i * sizeof *said)), bytes};
    bool readable = process_vm_readv(survey->pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes;
    bool all = true;

    for (size_t k = 0; k < n; k++) {
        some[k].done = survey->until == CRD_UNTIL_UNMAPPED ? !readable
                                                           : readable && (said[k] || survey->until == CRD_UNTIL_MAPPED);
        all = all && (some[k].done || !some[k].sent);
    }
    return all;
}

/* Wait until n threads of the same survey have done, or are about to wait for us no longer. */
static void await_done(struct traveller *some, size_t n)
{
    const struct timespec pause = {0, LOOK_AGAIN_NS};

    for (int glances = 0; !have_done(some, n) && now_ns() < some->deadline; glances++)
        if (glances > GLANCES) /* they may want the processor that we are on */
            nanosleep(&pause, NULL);
}

/* Wait for the stop of a thread that was interrupted, and put it back to where it was. Whether it had not ended, nor gone
 * home alone, after which it may be anywhere. */
static bool bring_home(const struct crd_survey *survey, struct crd_thread *thread, struct crd_error *err)
{
    uint64_t rip;
    int found;

    return !crd_wait(thread->tid, survey->patience_ns, &found, &thread->status, err) && found &&
           (thread->status & 0xff) == 0x7f &&
           !crd_ptrace_buffer(PTRACE_PEEKUSR, thread->tid, offsetof(struct user, regs.rip), &rip, "ptrace PEEKUSR",
                              err) &&
           rip - survey->slots < survey->n * survey->slot_bytes && !set_mask(thread, thread->mask, err) &&
           !set_registers(thread, thread->registers, err); /* last: from here on no stub puts the mask back */
}

static void depart(struct traveller *one, struct crd_error *err)
{
    one->sent = !send(one->survey, &one->survey->threads[one->i], one->i, err);
    one->deadline = now_ns() + one->survey->patience_ns / 2;
}

static void call_back(struct traveller *party, size_t n, struct crd_error *err)
{
    for (size_t first = 0, end; first < n; first = end) {
        for (end = first + 1; end < n && party[end].survey == party[first].survey;)
            end++;
        await_done(party + first, end - first);
        for (size_t k = first; k < end; k++)
            if (party[k].sent) /* the wait will say whether it has ended */
                crd_ptrace(PTRACE_INTERRUPT, party[k].survey->threads[party[k].i].tid, 0, 0, "ptrace INTERRUPT", err);
    }
}

static void receive(struct traveller *party, size_t n, struct crd_error *err)
{
    for (size_t k = 0; k < n; k++)
        if (party[k].sent && bring_home(party[k].survey, &party[k].survey->threads[party[k].i], err))
            ++*(party[k].done ? &party[k].survey->n_home : &party[k].survey->n_late);
}

/* The next thread of all surveys; whether there is one. */
static bool next_of(struct crd_survey **survey, const struct crd_survey *end, size_t *i, struct traveller *next_ret)
{
    for (; *survey < end && *i == (*survey)->n; *i = 0)
        ++*survey;
    *next_ret = (struct traveller){.survey = *survey, .i = *i};
    return *survey < end && ++*i;
}

void crd_surveys_run(struct crd_survey *surveys, size_t n)
{
    struct traveller parties[3][PARTY];
    size_t sizes[3] = {0};
    struct crd_survey *survey = surveys;
    struct crd_error err;
    size_t i = 0;

    for (size_t at = 0; at < n; at++)
        surveys[at].n_home = surveys[at].n_late = 0;
    /* A party is on its way while those before and after it are seen to. */
    for (size_t turn = 0, idle = 0; idle < 2; turn++) {
        size_t going = turn % 3, there = (turn + 2) % 3, back = (turn + 1) % 3;
        size_t *size = &sizes[going];
        for (*size = 0; *size < PARTY && next_of(&survey, surveys + n, &i, &parties[going][*size]); ++*size)
            depart(&parties[going][*size], &err);
        call_back(parties[there], sizes[there], &err);
        receive(parties[back], sizes[back], &err);
        idle = *size ? 0 : idle + 1;
    }
}
