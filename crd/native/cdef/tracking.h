struct crd_runs {
    struct crd_run *runs;
    size_t n;
    uint64_t bytes;
};

/* Pages of a process that hold anything. */
struct crd_pages {
    struct crd_runs written;
    struct crd_runs swapped; /* written too, and swapped out now, or guard pages now (madvise(2)) */
    struct crd_runs others;  /* not written */
    struct crd_runs others_swapped; /* not written, and swapped out or guard pages */
    size_t capacity;         /* of each */
};

/* Begin to use a userfaultfd (userfaultfd(2)) of another process for asynchronous write protection (6.7). */
int crd_userfaultfd_begin(int userfaultfd, struct crd_error *err);

/* Have writes to an area of anonymous memory noted; nothing changes if it was asked for before. */
int crd_userfaultfd_watch(int userfaultfd, const struct crd_run *area, struct crd_error *err);

/* Find the pages of areas that hold anything of the process's own.
 *
 * noted: tell those that were written since they were last found here from the others, and write-protect the former by the
 * same look, so that the next call finds what is written from now on. errors[i] is EPERM if nothing is noted of area i or of
 * a part of it: what was found of it means nothing. Otherwise all pages count as written.
 *
 * Begins at *area_ret, at *address_ret of it (0: its beginning), and leaves there where it has come to when there is no room
 * for more; all is done when *area_ret is n. */
int crd_pages_find(int pagemap_fd, int noted, const struct crd_run *areas, size_t n, int *errors, struct crd_pages *pages,
                   size_t *area_ret, uint64_t *address_ret, struct crd_error *err);
