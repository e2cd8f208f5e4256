/* Many threads of a process that are stopped, asked and let go together. A thread whose error is set has ended, or was
 * refused something; nothing more is done with it. */
struct crd_thread {
    int tid;
    int error;                    /* errno of the request that failed, 0 = none */
    int status;                   /* wait status of its last stop, 0 = none yet */
    int queued;                   /* whether signals are queued for this thread alone */
    int unconfined;               /* whether its status says that no seccomp is on; known with the files */
    uint64_t mask;                /* blocked signals */
    uint64_t robust_list;
    uint64_t robust_list_bytes;
    uint64_t rseq_address;        /* 0 = none is registered */
    uint64_t rseq_section;        /* its rseq_cs: the critical section it may be in, 0 = none */
    uint32_t rseq_bytes;
    uint32_t rseq_signature;
    uint64_t dispatch[4];         /* mode (0 = off), selector, offset, length: PR_SET_SYSCALL_USER_DISPATCH */
    uint32_t descriptors[12];     /* three struct user_desc: set_thread_area(2) */
    unsigned char registers[216]; /* struct user_regs_struct */
};

/* PTRACE_SEIZE and PTRACE_INTERRUPT. */
void crd_threads_seize(struct crd_thread *threads, size_t n, uint64_t options);

/* Wait for up to timeout_ns until each has stopped or ended; status stays 0 for those that have not. error ECHILD: it is
 * no tracee of ours. Waits as crd_wait does. */
int crd_threads_wait(struct crd_thread *threads, size_t n, int64_t timeout_ns, struct crd_error *err);

/* Where crd_threads_read puts what has no fixed size; each thread's `stride` bytes further. */
struct crd_thread_room {
    unsigned char *xstates;
    size_t xstate_stride;
    size_t xstate_bytes;          /* how large they were */
    unsigned char *statuses;      /* /proc/PID/task/TID/status, then a zero byte; empty if it is too long */
    size_t status_stride;
    const int *status_fds;
    struct crd_thread *threads;   /* the rest is for the reading of the files: of whom, how many are left, by whom */
    size_t n;
    size_t left;
    uint64_t helper;
    int has_helper;
};

/* Read all that struct crd_thread holds of stopped threads of `pid`, and fill the room but for the files: a thread of our own
 * begins to read these, since the other processors are idle now. crd_threads_await_files must follow. */
int crd_threads_read(struct crd_thread *threads, size_t n, int pid, struct crd_thread_room *room, struct crd_error *err);

/* Read what is left of the files, and wait for the thread that read the others. Nothing if that has been done. */
void crd_threads_await_files(struct crd_thread_room *room);

/* The pids of the children of stopped threads, each with a blank behind it. *length_ret: of all; what is beyond `size` is left
 * out. A thread that has ended has none. */
int crd_threads_children(const struct crd_thread *threads, size_t n, int pid, char *text, size_t size, size_t *length_ret,
                         struct crd_error *err);

/* Whether the program would notice the stop: its call returned EINTR, or it is in a critical section of rseq. */
int crd_thread_notices(const struct crd_thread *thread);

/* The first of n stopped threads that cannot be sent into a stub, since it was stopped before the delivery of a signal or no
 * stub could bring it home; n if all can. */
size_t crd_threads_obstructed(const struct crd_thread *threads, size_t n);

/* PTRACE_DETACH with signals[i], the first thread last. */
void crd_threads_detach(struct crd_thread *threads, size_t n, const int *signals);

enum crd_until {
    CRD_UNTIL_SAID,               /* a thread's word says that it has done */
    CRD_UNTIL_MAPPED,             /* the data can be read */
    CRD_UNTIL_UNMAPPED            /* no longer */
};

/* Threads of a process that go through survey stubs, and what they are asked there. */
struct crd_survey {
    int pid;
    struct crd_thread *threads;
    size_t n;
    size_t n_home;                /* how many are back, having done what they were sent for */
    size_t n_late;                /* how many are back without */
    enum crd_until until;         /* when they have */
    uint64_t slots;               /* address of the first stub in the target */
    size_t slot_bytes;
    uint64_t data;                /* address of 4 bytes a thread that say whether it has done, and then of the data */
    size_t head_bytes;            /* from there to the first thread's data */
    size_t first_bytes;           /* of its data: calls, then 8 bytes a result, then whatever the calls point to */
    size_t data_bytes;            /* of each other thread's */
    const uint64_t *calls;        /* 7 words each: number, six arguments */
    const unsigned char *relative; /* 7 a call: whether the word is an offset into what comes after the calls */
    size_t n_calls;               /* of the first thread */
    size_t n_calls_others;        /* the first so many are for the others, too */
    int64_t patience_ns;          /* how long a thread waits before it goes home alone */
};

/* Fill in stubs and data for an area, all zero, as the survey says. */
void crd_survey_fill(const struct crd_survey *survey, unsigned char *slots, unsigned char *data);

/* Send the stopped threads of n processes into their stubs, by one SETREGSET each and with all signals blocked; when each has
 * done stop it again, and put back its registers and its mask. status is then that of the new stop. Those that are not back
 * then have ended, or gone home alone because we were too slow. */
void crd_surveys_run(struct crd_survey *surveys, size_t n);
