/* Machine code that runs in other processes: position-independent. arch/x86_64/stubs.S says what each does. */
struct crd_code {
    const unsigned char *start;
    size_t length; /* bytes */
};
struct crd_code crd_stub_script_code(void);   /* several system calls in a live target, and home; ends in its slot */
struct crd_code crd_stub_snapshot_code(void); /* a copy-on-write child of a live target, and home; ends in its slot */
struct crd_code crd_batch_code(void);         /* system calls in processes of our own */
struct crd_code crd_vessel_code(void);        /* the ELF file that a restarted process begins as */
struct crd_code crd_reaper_code(void);        /* the ELF file that the first process of a pid namespace runs */
