#include <string.h>
#include <sys/user.h>

#include "../../core.h"

/* arch/x86/include/asm/syscall.h and include/linux/errno.h: what a call shows that the kernel would start again. */
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516

#define SYS_RESTART_SYSCALL 219
#define SYSCALL_BYTES 2

#define CF_TO_SF 0xd5 /* the flags that sahf sets */
#define ALWAYS_SET 0x02
#define TF 0x100
#define DF 0x400
#define OF 0x800
#define NT 0x4000
#define AC 0x40000

#define USER_CS 0x33 /* __USER_CS: 64-bit code */

/* The slot of a stub (stubs.S). */
struct home {
    uint64_t rip, rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
    uint8_t overflow, low_flags, direction, unused[5];
    uint64_t mask, all;
};
_Static_assert(sizeof(struct home) == CRD_HOME_BYTES, "stubs.S");

int crd_stub_carries(const unsigned char *bytes)
{
    struct user_regs_struct registers;

    memcpy(&registers, bytes, sizeof registers);
    return registers.cs == USER_CS && !(registers.eflags & (TF | NT | AC));
}

void crd_home_registers(unsigned char *bytes)
{
    struct user_regs_struct registers;

    memcpy(&registers, bytes, sizeof registers);
    if ((int64_t)registers.orig_rax >= 0) {
        switch (-(int64_t)registers.rax) {
        case ERESTARTSYS:
        case ERESTARTNOINTR:
        case ERESTARTNOHAND:
            registers.rax = registers.orig_rax;
            registers.rip -= SYSCALL_BYTES;
            break;
        case ERESTART_RESTARTBLOCK:
            registers.rax = SYS_RESTART_SYSCALL;
            registers.rip -= SYSCALL_BYTES;
            break;
        }
    }
    registers.orig_rax = UINT64_MAX;
    memcpy(bytes, &registers, sizeof registers);
}

void crd_stub_home(const unsigned char *bytes, uint64_t mask, unsigned char *home)
{
    struct user_regs_struct at;

    memcpy(&at, bytes, sizeof at);
    crd_home_registers((unsigned char *)&at);
    struct home slot = {
        .rip = at.rip, .rax = at.rax, .rcx = at.rcx, .rdx = at.rdx, .rsi = at.rsi, .rdi = at.rdi,
        .r8 = at.r8, .r9 = at.r9, .r10 = at.r10, .r11 = at.r11, .r12 = at.r12, .r13 = at.r13, .r14 = at.r14,
        .r15 = at.r15,
        .overflow = (at.eflags & OF) != 0,
        .low_flags = (uint8_t)((at.eflags & CF_TO_SF) | ALWAYS_SET),
        .direction = (at.eflags & DF) != 0,
        .mask = mask,
        .all = UINT64_MAX,
    };
    memcpy(home, &slot, sizeof slot);
}
