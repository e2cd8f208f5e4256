#include "../../core.h"

__asm__(".pushsection .rodata.crd_code, \"a\", @progbits\n"
        ".include \"stubs.S\"\n"
        ".popsection\n");

#define HIDDEN __attribute__((visibility("hidden")))
#define CODE(name)                                                                                                     \
    extern const unsigned char crd_##name##_start[] HIDDEN;                                                            \
    extern const unsigned char crd_##name##_end[] HIDDEN;                                                              \
    struct crd_code crd_##name##_code(void)                                                                            \
    {                                                                                                                  \
        return (struct crd_code){crd_##name##_start, (size_t)(crd_##name##_end - crd_##name##_start)};                 \
    }

CODE(stub_script)
CODE(stub_survey)
CODE(stub_snapshot)
CODE(batch)
CODE(vessel)
CODE(reaper)
