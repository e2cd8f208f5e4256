/* Why a call failed. Owned by the caller, flat, filled in by the call that returned -1. */
struct crd_error {
    char operation[48]; /* what was tried: "ptrace SEIZE", "clone3" */
    int error_number;   /* errno */
    int tid;            /* of whom, 0 = nobody */
    uint64_t address;   /* where in its memory, 0 = nowhere */
};
