/* Machine code that runs in other processes: position-independent. arch/x86_64/stubs.S says what each does. */
struct crd_code {
    const unsigned char *start;
    size_t length; /* bytes */
};
struct crd_code crd_stub_script_code(void);   /* several system calls in a live target, and home; ends in its slot */
struct crd_code crd_stub_survey_code(void);   /* system calls in many threads of a live target at once; ends in its slot */
struct crd_code crd_stub_snapshot_code(void); /* a copy-on-write child of a live target, and home; ends in its slot */
struct crd_code crd_batch_code(void);         /* system calls in processes of our own */
struct crd_code crd_vessel_code(void);        /* the ELF file that a restarted process begins as */
struct crd_code crd_reaper_code(void);        /* the ELF file that the first process of a pid namespace runs */

/* Whether a stub can bring a thread with these registers home: it runs 64-bit code, and has no flag set that is not restored
 * (TF, NT, AC). */
int crd_stub_carries(const unsigned char *registers);

/* Turn the registers of a stopped thread (struct user_regs_struct) into those with which it goes on by itself as the kernel
 * would let it: a call that is to be started again is wound back to its instruction. */
void crd_home_registers(unsigned char *registers);

#define CRD_HOME_BYTES 136

/* Fill in the first CRD_HOME_BYTES of a stub's slot for a thread with these registers and this signal mask. */
void crd_stub_home(const unsigned char *registers, uint64_t mask, unsigned char *home);
