# Stubs: machine code for a live target.  A stub is written behind the target's vdso with a slot of data at its end, and
# a thread enters it by one SETREGSET.
#
# A stub finds its own way home: the tracer has put the thread's registers into the slot, and whatever becomes of the
# tracer, the thread ends where it came from with its registers and its signal mask as they were.  No stub touches the
# stack or the floating point unit.  Its first system call blocks all signals and its last one unblocks them, so that one
# which comes meanwhile waits until the thread is home.  Not restored: TF, AC and NT.
#
# Offsets into the slot; inject.py has the same:
#   0 rip 8 rax 16 rcx 24 rdx 32 rsi 40 rdi 48 r8 56 r9 64 r10 72 r11 80 r12 88 r13 96 r14 104 r15
#   112 OF (0 or 1)  113 the low byte of the flags  114 DF (0 or 1)  120 the signal mask  128 all signals
#   136 what the stub is to do

        .macro SIGNALS mask
        mov     $14, %eax                       # rt_sigprocmask(SIG_SETMASK, mask, NULL, 8)
        mov     $2, %edi
        lea     \mask(%rip), %rsi
        xor     %edx, %edx
        mov     $8, %r10d
        syscall
        .endm

        .macro HOME slot
        SIGNALS \slot+120
        lea     \slot(%rip), %rdi
        cld
        testb   $1, 114(%rdi)
        jz      9f
        std
9:      movb    112(%rdi), %al
        addb    $0x7f, %al                      # overflows, and so sets OF, if al was 1
        movb    113(%rdi), %ah
        sahf
        mov     16(%rdi), %rcx
        mov     24(%rdi), %rdx
        mov     32(%rdi), %rsi
        mov     48(%rdi), %r8
        mov     56(%rdi), %r9
        mov     64(%rdi), %r10
        mov     72(%rdi), %r11
        mov     80(%rdi), %r12
        mov     88(%rdi), %r13
        mov     96(%rdi), %r14
        mov     104(%rdi), %r15
        mov     8(%rdi), %rax
        mov     40(%rdi), %rdi
        jmp     *\slot+0(%rip)
        .endm

# The calls of a table from (r12) on, r13 of them, 7 words each: number, six arguments.  Their results go to (r15) and
# so on, or nowhere if that is NULL.
        .macro CALLS
1:      test    %r13, %r13
        jz      3f
        mov     0(%r12), %rax
        mov     8(%r12), %rdi
        mov     16(%r12), %rsi
        mov     24(%r12), %rdx
        mov     32(%r12), %r10
        mov     40(%r12), %r8
        mov     48(%r12), %r9
        syscall
        test    %r15, %r15
        jz      2f
        mov     %rax, (%r15)
        add     $8, %r15
2:      add     $56, %r12
        dec     %r13
        jmp     1b
3:
        .endm

# ---- script: a scratch area, system calls that may point into it, no scratch area -------------------------------------
# 136 bytes of scratch  144 number of calls  152 calls.  The tracer fills in the calls once it knows where the scratch area
# is.  The results are its first words.  If it is to have no bytes there is none, and the tracer sees the results itself.
        .globl  crd_stub_script_start, crd_stub_script_slot, crd_stub_script_end
        .hidden crd_stub_script_start, crd_stub_script_slot, crd_stub_script_end
crd_stub_script_start:
        SIGNALS crd_stub_script_slot+128
        xor     %r14d, %r14d
        xor     %r15d, %r15d
        mov     crd_stub_script_slot+136(%rip), %rsi
        test    %rsi, %rsi
        jz      5f
        mov     $9, %eax                        # mmap(NULL, bytes, READ|WRITE, PRIVATE|ANONYMOUS, -1, 0)
        xor     %edi, %edi
        mov     $3, %edx
        mov     $0x22, %r10d
        mov     $-1, %r8
        xor     %r9d, %r9d
        syscall
        cmp     $-4096, %rax
        ja      4f
        mov     %rax, %r14
        mov     %rax, %r15
5:      lea     crd_stub_script_slot+152(%rip), %r12
        mov     crd_stub_script_slot+144(%rip), %r13
        CALLS
        test    %r14, %r14
        jz      4f
        mov     $11, %eax                       # munmap(scratch, bytes)
        mov     %r14, %rdi
        mov     crd_stub_script_slot+136(%rip), %rsi
        syscall
4:      HOME    crd_stub_script_slot
        .balign 8
crd_stub_script_slot:
        .fill   152, 1, 0
crd_stub_script_end:

# ---- survey: system calls in many threads at once, which lie with their results in an area that all share ---------------
# 136 the calls  144 number of calls  152 where the results go, or 0  160 where 4 bytes become 1 when that is done, or 0
# 168 how long to wait then for a tracer (struct timespec).
# The area stays until a tracer that has stopped all threads, none of them in here, removes it.
        .globl  crd_stub_survey_start, crd_stub_survey_slot, crd_stub_survey_end
        .hidden crd_stub_survey_start, crd_stub_survey_slot, crd_stub_survey_end
crd_stub_survey_start:
        SIGNALS crd_stub_survey_slot+128
        mov     crd_stub_survey_slot+136(%rip), %r12
        mov     crd_stub_survey_slot+144(%rip), %r13
        mov     crd_stub_survey_slot+152(%rip), %r15
        CALLS
        mov     crd_stub_survey_slot+160(%rip), %rax
        test    %rax, %rax
        jz      4f
        movl    $1, (%rax)
4:      mov     $271, %eax                      # ppoll(NULL, 0, timeout, NULL, 0): leaves the restart block alone
        xor     %edi, %edi
        xor     %esi, %esi
        lea     crd_stub_survey_slot+168(%rip), %rdx
        xor     %r10d, %r10d
        xor     %r8d, %r8d
        syscall
        HOME    crd_stub_survey_slot
        .balign 8
crd_stub_survey_slot:
        .fill   184, 1, 0
crd_stub_survey_end:

# ---- snapshot: a copy-on-write child that stays stopped ---------------------------------------------------------------
# 136 flags of the clone that makes the middle task, 144 flags of the clone that makes the child; 152 an area that is
# unmapped before that, 160 its bytes, 0 = none.
# The middle task shares the memory (and with CLONE_VFORK keeps the alternate signal stack), makes the child and is gone;
# the child, which no one but the tracer waits for, would do nothing but exit if it ever ran.
        .globl  crd_stub_snapshot_start, crd_stub_snapshot_slot, crd_stub_snapshot_end
        .hidden crd_stub_snapshot_start, crd_stub_snapshot_slot, crd_stub_snapshot_end
crd_stub_snapshot_start:
        SIGNALS crd_stub_snapshot_slot+128
        mov     crd_stub_snapshot_slot+160(%rip), %rsi
        test    %rsi, %rsi
        jz      4f
        mov     $11, %eax                       # munmap(area, bytes)
        mov     crd_stub_snapshot_slot+152(%rip), %rdi
        syscall
4:      mov     $56, %eax                       # clone(flags, 0, 0, 0, 0)
        mov     crd_stub_snapshot_slot+136(%rip), %rdi
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
        mov     crd_stub_snapshot_slot+144(%rip), %rdi
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
        .fill   168, 1, 0
crd_stub_snapshot_end:

# ---- batch: system calls in a process of our own ----------------------------------------------------------------------
# Entered with rbx = table, rbp = number of calls; ends with SIGTRAP sent to itself, which a breakpoint would not leave as
# it is: that resets the action of a blocked or ignored SIGTRAP.  A call is 8 words: number with, in bits 32 to 37, a bit
# for each argument that is the index of an earlier call whose result is meant, and in bit 38 "go on if it fails"; six
# arguments; the result.  rbp counts what was left when it ended.  Two things are no single system call.  Bit 39: of the
# pages from the first argument on, as many as the second one says, each that holds anything makes 1 of a byte from the
# third one on.  Bit 40: vmsplice into the first argument what lies from the second one on, as many bytes as the third one
# says, however many calls that takes.
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
        bt      $39, %r13
        jc      4f
        bt      $40, %r13
        jc      9f
        mov     %r13d, %eax
        syscall
2:      mov     %rax, 56(%rbx)
        dec     %rbp
        add     $64, %rbx
        bt      $38, %r13
        jc      1b
        cmp     $-4096, %rax
        jbe     1b
3:      mov     $186, %eax                      # tkill(gettid(), SIGTRAP)
        syscall
        mov     %eax, %edi
        mov     $5, %esi
        mov     $200, %eax
        syscall
        hlt
4:      xor     %eax, %eax
        test    %rsi, %rsi
        jz      2b
5:      prefetcht0 8*4096(%rdi)                 # never faults; most pages are known by their first words
        lea     4096(%rdi), %r8
6:      mov     0(%rdi), %rcx
        or      8(%rdi), %rcx
        or      16(%rdi), %rcx
        or      24(%rdi), %rcx
        or      32(%rdi), %rcx
        or      40(%rdi), %rcx
        or      48(%rdi), %rcx
        or      56(%rdi), %rcx
        jnz     7f
        add     $64, %rdi
        cmp     %r8, %rdi
        jne     6b
        jmp     8f
7:      movb    $1, (%rdx)
8:      mov     %r8, %rdi
        inc     %rdx
        dec     %rsi
        jnz     5b
        jmp     2b
9:      mov     %rsi, 40(%rbx)                  # struct iovec
        mov     %rdx, 48(%rbx)
1:      mov     $278, %eax
        lea     40(%rbx), %rsi
        mov     $1, %edx
        xor     %r10d, %r10d
        syscall
        test    %rax, %rax
        jle     2b
        add     %rax, 40(%rbx)
        sub     %rax, 48(%rbx)
        jnz     1b
        xor     %eax, %eax
        jmp     2b
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
# Waits for whatever ends; with the last one gone it exits as the root did.  The number of the root is patched into
# bytes 12 to 15, which ELF leaves unused; 0: the last one counts.
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
        mov     crd_reaper_start+12(%rip), %ebp
2:      mov     $61, %eax                       # wait4(-1, &status, __WALL, NULL)
        mov     $-1, %rdi
        mov     %rsp, %rsi
        mov     $0x40000000, %edx
        xor     %r10d, %r10d
        syscall
        test    %rax, %rax
        js      4f
        test    %ebp, %ebp
        jz      3f
        cmp     %eax, %ebp
        jne     2b
3:      mov     (%rsp), %eax
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
