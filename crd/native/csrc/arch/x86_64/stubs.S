# Stubs: machine code for a live target.  A stub is written behind the target's vdso with a slot of data at its end, and
# a thread enters it by one SETREGSET.
#
# A stub finds its own way home: the tracer has put the thread's registers into the slot, and whatever becomes of the
# tracer, the thread ends where it came from with its registers as they were.  No stub touches the stack, the signal mask
# or the floating point unit, so a signal at any instruction is delivered as ever.  Not restored: TF, AC and NT.
#
# Offsets into the slot; inject.py has the same:
#   0 rip 8 rax 16 rcx 24 rdx 32 rsi 40 rdi 48 r8 56 r9 64 r10 72 r11 80 r12 88 r13 96 r14 104 r15
#   112 OF (0 or 1)  113 the low byte of the flags  114 DF (0 or 1)  120 what the stub is to do

        .macro HOME slot
        cld
        testb   $1, \slot+114(%rip)
        jz      9f
        std
9:      movb    \slot+112(%rip), %al
        addb    $0x7f, %al                      # overflows, and so sets OF, if al was 1
        movb    \slot+113(%rip), %ah
        sahf
        mov     \slot+16(%rip), %rcx
        mov     \slot+24(%rip), %rdx
        mov     \slot+32(%rip), %rsi
        mov     \slot+40(%rip), %rdi
        mov     \slot+48(%rip), %r8
        mov     \slot+56(%rip), %r9
        mov     \slot+64(%rip), %r10
        mov     \slot+72(%rip), %r11
        mov     \slot+80(%rip), %r12
        mov     \slot+88(%rip), %r13
        mov     \slot+96(%rip), %r14
        mov     \slot+104(%rip), %r15
        mov     \slot+8(%rip), %rax
        jmp     *\slot+0(%rip)
        .endm

# ---- script: a scratch area, system calls that may point into it, no scratch area -------------------------------------
# 120 bytes of scratch  128 number of calls  136 calls of 7 words: number with, from bit 32 on, a bit for each argument
# that is an offset into the scratch; six arguments.  The result of call i goes to word i of the scratch.
        .globl  crd_stub_script_start, crd_stub_script_slot, crd_stub_script_end
        .hidden crd_stub_script_start, crd_stub_script_slot, crd_stub_script_end
crd_stub_script_start:
        mov     $9, %eax                        # mmap(NULL, bytes, READ|WRITE, PRIVATE|ANONYMOUS, -1, 0)
        xor     %edi, %edi
        mov     crd_stub_script_slot+120(%rip), %rsi
        mov     $3, %edx
        mov     $0x22, %r10d
        mov     $-1, %r8
        xor     %r9d, %r9d
        syscall
        cmp     $-4096, %rax
        ja      4f
        mov     %rax, %r14
        lea     crd_stub_script_slot+136(%rip), %r12
        mov     crd_stub_script_slot+128(%rip), %r13
        xor     %r15d, %r15d
1:      cmp     %r13, %r15
        je      3f
        mov     0(%r12), %rax
        mov     8(%r12), %rdi
        mov     16(%r12), %rsi
        mov     24(%r12), %rdx
        mov     32(%r12), %r10
        mov     40(%r12), %r8
        mov     48(%r12), %r9
        .macro RELOCATE bit, register
        bt      $\bit, %rax
        jnc     8f
        add     %r14, \register
8:
        .endm
        RELOCATE 32, %rdi
        RELOCATE 33, %rsi
        RELOCATE 34, %rdx
        RELOCATE 35, %r10
        RELOCATE 36, %r8
        RELOCATE 37, %r9
        mov     %eax, %eax
        syscall
        mov     %rax, (%r14,%r15,8)
        add     $56, %r12
        inc     %r15
        jmp     1b
3:      mov     $11, %eax                       # munmap(scratch, bytes)
        mov     %r14, %rdi
        mov     crd_stub_script_slot+120(%rip), %rsi
        syscall
4:      HOME    crd_stub_script_slot
        .balign 8
crd_stub_script_slot:
        .fill   136, 1, 0
crd_stub_script_end:

# ---- snapshot: a copy-on-write child that stays stopped ---------------------------------------------------------------
# 120 flags of the clone that makes the middle task, 128 flags of the clone that makes the child.
# The middle task shares the memory (and with CLONE_VFORK keeps the alternate signal stack), makes the child and is gone;
# the child, which no one but the tracer waits for, would do nothing but exit if it ever ran.
        .globl  crd_stub_snapshot_start, crd_stub_snapshot_slot, crd_stub_snapshot_end
        .hidden crd_stub_snapshot_start, crd_stub_snapshot_slot, crd_stub_snapshot_end
crd_stub_snapshot_start:
        mov     $56, %eax                       # clone(flags, 0, 0, 0, 0)
        mov     crd_stub_snapshot_slot+120(%rip), %rdi
        xor     %esi, %esi
        xor     %edx, %edx
        xor     %r10d, %r10d
        xor     %r8d, %r8d
        syscall
        test    %rax, %rax
        js      2f
        jz      1f
        mov     %eax, %edi                      # wait4(middle, NULL, __WALL, NULL)
        xor     %esi, %esi
        mov     $0x40000000, %edx
        xor     %r10d, %r10d
        mov     $61, %eax
        syscall
        jmp     2f
1:      mov     $56, %eax
        mov     crd_stub_snapshot_slot+128(%rip), %rdi
        syscall
        xor     %edi, %edi                      # exit_group(0), or with the error if there is no child
        sub     %eax, %edi
        test    %rax, %rax
        js      3f
        xor     %edi, %edi
3:      mov     $231, %eax
        syscall
        hlt
2:      HOME    crd_stub_snapshot_slot
        .balign 8
crd_stub_snapshot_slot:
        .fill   136, 1, 0
crd_stub_snapshot_end:

# ---- batch: system calls in a process of our own ----------------------------------------------------------------------
# Entered with rbx = table, rbp = number of calls; ends in int3.  A call is 8 words: number with, in bits 32 to 37, a bit
# for each argument that is the index of an earlier call whose result is meant, and in bit 38 "go on if it fails"; six
# arguments; the result.  rbp counts what was left when it ended.
        .globl  crd_batch_start, crd_batch_end
        .hidden crd_batch_start, crd_batch_end
crd_batch_start:
        mov     %rbx, %r12                      # the table, for results by index
1:      test    %rbp, %rbp
        jz      3f
        mov     0(%rbx), %r13
        mov     8(%rbx), %rdi
        mov     16(%rbx), %rsi
        mov     24(%rbx), %rdx
        mov     32(%rbx), %r10
        mov     40(%rbx), %r8
        mov     48(%rbx), %r9
        .macro RESULT bit, register
        bt      $\bit, %r13
        jnc     8f
        shl     $6, \register
        mov     56(%r12,\register), \register
8:
        .endm
        RESULT  32, %rdi
        RESULT  33, %rsi
        RESULT  34, %rdx
        RESULT  35, %r10
        RESULT  36, %r8
        RESULT  37, %r9
        mov     %r13d, %eax
        syscall
        mov     %rax, 56(%rbx)
        dec     %rbp
        add     $64, %rbx
        bt      $38, %r13
        jc      1b
        cmp     $-4096, %rax
        jbe     1b
3:      int3
        jmp     3b
crd_batch_end:

# ---- vessel: the program that a restarted process begins as ------------------------------------------------------------
# A whole ELF file of one page at an odd address: it waits.
        .globl  crd_vessel_start, crd_vessel_end
        .hidden crd_vessel_start, crd_vessel_end
        .set    VESSEL, 0x6a7000000000
        .balign 16
crd_vessel_start:
        .byte   0x7f, 'E', 'L', 'F', 2, 1, 1, 0
        .quad   0
        .short  2, 62                           # ET_EXEC, EM_X86_64
        .long   1
        .quad   VESSEL + 2f - crd_vessel_start  # entry
        .quad   64                              # program headers
        .quad   0
        .long   0
        .short  64, 56, 2, 64, 0, 0
        .long   1, 5                            # PT_LOAD, R+X
        .quad   0, VESSEL, VESSEL, crd_vessel_end - crd_vessel_start, crd_vessel_end - crd_vessel_start, 4096
        .long   0x6474e551, 6                   # PT_GNU_STACK, R+W
        .quad   0, 0, 0, 0, 0, 16
2:      mov     $34, %eax                       # pause()
        syscall
        jmp     2b
crd_vessel_end:

# ---- reaper: the first process of a pid namespace ------------------------------------------------------------------------
# Waits for whatever ends; with the last one gone it exits as that one did.
        .globl crd_reaper_start, crd_reaper_end
        .hidden crd_reaper_start, crd_reaper_end
        .balign 16
crd_reaper_start:
        .byte   0x7f, 'E', 'L', 'F', 2, 1, 1, 0
        .quad   0
        .short  2, 62
        .long   1
        .quad   VESSEL + 1f - crd_reaper_start
        .quad   64
        .quad   0
        .long   0
        .short  64, 56, 2, 64, 0, 0
        .long   1, 5
        .quad   0, VESSEL, VESSEL, crd_reaper_end - crd_reaper_start, crd_reaper_end - crd_reaper_start, 4096
        .long   0x6474e551, 6
        .quad   0, 0, 0, 0, 0, 16
1:      sub     $16, %rsp
        xor     %ebx, %ebx
2:      mov     $61, %eax                       # wait4(-1, &status, __WALL, NULL)
        mov     $-1, %rdi
        mov     %rsp, %rsi
        mov     $0x40000000, %edx
        xor     %r10d, %r10d
        syscall
        test    %rax, %rax
        js      4f
        mov     (%rsp), %eax
        movzbl  %ah, %ebx                       # exit status
        and     $0x7f, %eax
        jz      2b
        lea     128(%rax), %ebx                 # as a shell says it of a signal
        jmp     2b
4:      cmp     $-10, %rax                      # ECHILD
        jne     2b
        mov     %ebx, %edi
        mov     $231, %eax
        syscall
        hlt
crd_reaper_end:
