/* Part of another process's memory. */
struct crd_run {
    uint64_t address;
    uint64_t length; /* bytes */
};

/* Runs packed one after the other in buffer, through /proc/PID/mem. Exact, or an error with the address. */
int crd_memory_read(int mem_fd, const struct crd_run *runs, size_t n, void *buffer, struct crd_error *err);
int crd_memory_write(int mem_fd, const struct crd_run *runs, size_t n, const void *buffer, struct crd_error *err);

/* Runs of whole pages: bit i of the map, zero at first, is set if page i there is not as in the buffer. */
int crd_memory_differing(int mem_fd, const struct crd_run *runs, size_t n, const void *buffer, unsigned char *map,
                         struct crd_error *err);

/* Runs packed one after the other by process_vm_readv and process_vm_writev. Reading un-shares copy-on-write pages: never read a snapshot
 * this way. */
int crd_process_read(int pid, const struct crd_run *runs, size_t n, void *buffer, struct crd_error *err);
int crd_process_write(int pid, const struct crd_run *runs, size_t n, const void *buffer, struct crd_error *err);

/* Bit i of the map: page i of the buffer holds a byte that is not zero. */
void crd_nonzero_pages(const void *buffer, size_t n_pages, unsigned char *map);

/* Have our own copies of pages of ours that we share copy-on-write, up to a run of no bytes: MADV_POPULATE_WRITE, where
 * there is none (5.14) or nothing is mapped nothing happens. */
void crd_memory_own(const struct crd_run *runs, size_t n);
