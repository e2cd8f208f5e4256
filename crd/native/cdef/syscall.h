/* syscall(2) with six arguments; *ret_ret is what it returned if that is no error. */
int crd_syscall(long number, const uint64_t *arguments, int64_t *ret_ret, struct crd_error *err);
