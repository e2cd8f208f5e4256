/* ptrace(request, tid, address, data); for requests whose data is a number. */
int crd_ptrace(int request, int tid, uint64_t address, uint64_t data, const char *operation, struct crd_error *err);

/* The same for requests whose data is a buffer of ours. */
int crd_ptrace_buffer(int request, int tid, uint64_t address, void *buffer, const char *operation,
                      struct crd_error *err);

/* A register set (NT_*). *length_ret: bytes read. */
int crd_regset_get(int tid, int type, void *buffer, size_t length, size_t *length_ret, struct crd_error *err);
int crd_regset_set(int tid, int type, const void *buffer, size_t length, struct crd_error *err);

/* Up to n siginfos (128 bytes each) of a queue from `offset` on. *n_ret: how many. */
int crd_siginfo_peek(int tid, int shared, uint64_t offset, int n, void *buffer, int *n_ret, struct crd_error *err);

/* Wait for a stop or the end of tid (-1: of any tracee) for up to timeout_ns (negative: for ever).
 * *tid_ret: of whom, 0 = nothing happened in time. Needs no handler: SIGCHLD is blocked for the while.
 * A stop before the delivery of a signal is not consumed: it is reported again until the tracee is let go, and the
 * kernel delivers the signal if we die. */
int crd_wait(int tid, int64_t timeout_ns, int *tid_ret, int *status_ret, struct crd_error *err);

/* Let a stopped tracee run through n stops at the entry or exit of system calls; a SIGSTOP on the way is passed on.
 * *status_ret: its last stop, which is no such stop if it ended or another signal is due. Waits without limit. */
int crd_syscall_stops(int tid, int n, int *status_ret, struct crd_error *err);

/* A filter of seccomp(2), 0 = the one installed first: its instructions and flags. *n_ret: how many, 0 = there is none. */
int crd_seccomp_filter_get(int tid, int index, uint64_t *instructions, int *n_ret, uint64_t *flags_ret,
                           struct crd_error *err);

int crd_robust_list_get(int tid, uint64_t *head_ret, uint64_t *length_ret, struct crd_error *err);
