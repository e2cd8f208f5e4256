/* syscall(2) with six arguments; *ret_ret is what it returned if that is no error. */
int crd_syscall(long number, const uint64_t *arguments, int64_t *ret_ret, struct crd_error *err);

/* Finds each of n processes among groups, which are in the kernel's own order of their objects of a kind (kcmp(2)): the
 * place of the group that it has the object in common with, or -1. */
void crd_kcmp_places(int kind, const int32_t *groups, size_t n_groups, const int32_t *pids, size_t n,
                     int32_t *places_ret);
