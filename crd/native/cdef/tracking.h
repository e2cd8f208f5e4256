/* Begin to use a userfaultfd (userfaultfd(2)) of another process for asynchronous write protection (6.7). */
int crd_userfaultfd_begin(int userfaultfd, struct crd_error *err);

/* Have writes to an area of anonymous memory noted; nothing changes if it was asked for before. */
int crd_userfaultfd_watch(int userfaultfd, const struct crd_run *area, struct crd_error *err);

/* Find the pages of areas that were written since they were last found here, and write-protect them by the same look, so
 * that the next call finds what is written from now on.
 *
 * dense: find also those that were given back since, and those that were never there, once; but where a page table is
 * missing, the kernel may tell nothing, or make one to note that. This is quicker by far, and for areas that have page
 * tables.
 *
 * errors[i] is EPERM if nothing is noted of area i or of a part of it: what was found of it means nothing.
 *
 * Begins and ends as crd_pages_own. */
int crd_pages_changed(int pagemap_fd, int dense, const struct crd_run *areas, size_t n, size_t *area_ret,
                      uint64_t *address_ret, int *errors, struct crd_runs *changed, struct crd_error *err);
