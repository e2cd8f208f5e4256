/*
 * A target that watches itself while tracers come, inject, snapshot and are killed.
 *
 *   selfcheck FILE spin|block
 *
 * FILE holds a struct report, shared with the test.  The main thread spins with known values in every register, in the
 * red zone and in the vector registers, and looks at its memory, its signal mask and its children; with "block" six
 * threads more wait in system calls that must return what, and not before, they should.  The test sends SIGRTMIN.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { GENERAL = 15, VECTOR_BYTES = 64, VECTORS = 32, MASKS = 8, MEMORY_BYTES = 1 << 16 };
enum { PERIOD_NS = 20000000, SECOND_NS = 1000000000 };
enum { CARRY_TO_OVERFLOW = 0xcd5, OVERFLOW_SIGN_ADJUST = 0x890, DIRECTION = 0x400 };
enum vector_kind { SSE, AVX, AVX512 };

/* What the test reads; chaos.py has the same names in the same order. */
struct report {
	uint64_t ready, end, rounds, blocked_calls, signals;
	uint64_t wrong_registers, wrong_flags, wrong_red_zone, wrong_vectors, wrong_memory, wrong_mask, wrong_children,
		wrong_results, early_returns;
};

static volatile struct report *report;

/* In and out of the assembly below. */
uint64_t general_in[GENERAL];
uint64_t general_out[GENERAL];
uint64_t flags_out;
uint64_t red_zone_out[2];
uint8_t vectors_in[VECTORS * VECTOR_BYTES] __attribute__((aligned(64)));
uint8_t vectors_out[VECTORS * VECTOR_BYTES] __attribute__((aligned(64)));
uint64_t masks_in[MASKS];
uint64_t masks_out[MASKS];
int vector_kind;

void spin(long turns, long backwards);

#define LOW "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
#define HIGH ",16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"

/* rax holds the kind of vectors; rdx, rcx and rsi are spoiled. */
#define MOVE_VECTORS(zmm, ymm, xmm, mask)                                                                              \
	"	cmpl	$1, vector_kind(%rip)\n"                                                                               \
	"	jb	3f\n"                                                                                                     \
	"	je	2f\n"                                                                                                     \
	"	.irp n, " LOW HIGH "\n" zmm "	.endr\n"                                                                        \
	"	.irp n, 0,1,2,3,4,5,6,7\n" mask "	.endr\n"                                                                     \
	"	jmp	4f\n"                                                                                                    \
	"2:	.irp n, " LOW "\n" ymm "	.endr\n"                                                                            \
	"	jmp	4f\n"                                                                                                    \
	"3:	.irp n, " LOW "\n" xmm "	.endr\n"                                                                            \
	"4:\n"

__asm__("	.text\n"
	"	.globl	spin\n"
	"spin:	push	%rbx\n"
	"	push	%rbp\n"
	"	push	%r12\n"
	"	push	%r13\n"
	"	push	%r14\n"
	"	push	%r15\n"
	"	mov	%rdi, %rcx\n"
	"	mov	%rsi, %rbx\n"
	"	lea	vectors_in(%rip), %rdx\n"
	"	lea	masks_in(%rip), %rsi\n"
	MOVE_VECTORS("vmovdqu64 \\n*64(%rdx), %zmm\\n\n", "vmovdqu \\n*64(%rdx), %ymm\\n\n", "movdqu \\n*64(%rdx), %xmm\\n\n",
		     "kmovq \\n*8(%rsi), %k\\n\n")
	"	movq	$0x5afe, -8(%rsp)\n"
	"	movq	$0x5aff, -128(%rsp)\n"
	"	cld\n"
	"	test	%rbx, %rbx\n"
	"	jz	1f\n"
	"	std\n"
	"1:	mov	$0x7f, %al\n" /* the sum sets the overflow, sign and adjust flags; nothing below changes them */
	"	add	$1, %al\n"
	"	lea	general_in(%rip), %rax\n"
	"	mov	8(%rax), %rbx\n"
	"	mov	16(%rax), %rdx\n"
	"	mov	24(%rax), %rsi\n"
	"	mov	32(%rax), %rdi\n"
	"	mov	40(%rax), %rbp\n"
	"	mov	48(%rax), %r8\n"
	"	mov	56(%rax), %r9\n"
	"	mov	64(%rax), %r10\n"
	"	mov	72(%rax), %r11\n"
	"	mov	80(%rax), %r12\n"
	"	mov	88(%rax), %r13\n"
	"	mov	96(%rax), %r14\n"
	"	mov	104(%rax), %r15\n"
	"	mov	0(%rax), %rax\n"
	"2:	lea	-1(%rcx), %rcx\n"
	"	jrcxz	3f\n"
	"	jmp	2b\n"
	"3:	mov	%rax, general_out(%rip)\n"
	"	mov	%rbx, general_out+8(%rip)\n"
	"	mov	%rdx, general_out+16(%rip)\n"
	"	mov	%rsi, general_out+24(%rip)\n"
	"	mov	%rdi, general_out+32(%rip)\n"
	"	mov	%rbp, general_out+40(%rip)\n"
	"	mov	%r8, general_out+48(%rip)\n"
	"	mov	%r9, general_out+56(%rip)\n"
	"	mov	%r10, general_out+64(%rip)\n"
	"	mov	%r11, general_out+72(%rip)\n"
	"	mov	%r12, general_out+80(%rip)\n"
	"	mov	%r13, general_out+88(%rip)\n"
	"	mov	%r14, general_out+96(%rip)\n"
	"	mov	%r15, general_out+104(%rip)\n"
	"	mov	%rcx, general_out+112(%rip)\n"
	"	mov	-8(%rsp), %rax\n"
	"	mov	%rax, red_zone_out(%rip)\n"
	"	mov	-128(%rsp), %rax\n"
	"	mov	%rax, red_zone_out+8(%rip)\n"
	"	pushfq\n"
	"	pop	%rax\n"
	"	mov	%rax, flags_out(%rip)\n"
	"	cld\n"
	"	lea	vectors_out(%rip), %rdx\n"
	"	lea	masks_out(%rip), %rsi\n"
	MOVE_VECTORS("vmovdqu64 %zmm\\n, \\n*64(%rdx)\n", "vmovdqu %ymm\\n, \\n*64(%rdx)\n", "movdqu %xmm\\n, \\n*64(%rdx)\n",
		     "kmovq %k\\n, \\n*8(%rsi)\n")
	"	pop	%r15\n"
	"	pop	%r14\n"
	"	pop	%r13\n"
	"	pop	%r12\n"
	"	pop	%rbp\n"
	"	pop	%rbx\n"
	"	ret\n");

static void add(volatile uint64_t *counter)
{
	__atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
}

static void expect(bool condition, volatile uint64_t *counter)
{
	if (!condition)
		add(counter);
}

static void choose_values(void)
{
	__builtin_cpu_init();
	vector_kind = __builtin_cpu_supports("avx512bw") ? AVX512 : __builtin_cpu_supports("avx2") ? AVX : SSE;
	for (int i = 0; i < GENERAL - 1; i++)
		general_in[i] = 0x9e3779b97f4a7c15 * (uint64_t)(i + 1);
	for (int i = 0; i < VECTORS * VECTOR_BYTES; i++)
		vectors_in[i] = (uint8_t)(i * 37 + 11);
	for (int i = 0; i < MASKS; i++)
		masks_in[i] = 0x0123456789abcdef * (uint64_t)(i + 3);
}

static void check_vectors(void)
{
	static const int bytes[] = {[SSE] = 16, [AVX] = 32, [AVX512] = 64};
	int n = vector_kind == AVX512 ? VECTORS : VECTORS / 2;

	for (int i = 0; i < n; i++)
		expect(!memcmp(vectors_in + i * VECTOR_BYTES, vectors_out + i * VECTOR_BYTES, (size_t)bytes[vector_kind]),
		       &report->wrong_vectors);
	expect(vector_kind != AVX512 || !memcmp(masks_in, masks_out, sizeof(masks_in)), &report->wrong_vectors);
}

static void check_processor(void)
{
	bool backwards = report->rounds & 1;

	spin(20000, backwards);
	expect(!memcmp(general_in, general_out, sizeof(general_in)), &report->wrong_registers);
	expect((flags_out & CARRY_TO_OVERFLOW & ~DIRECTION) == OVERFLOW_SIGN_ADJUST, &report->wrong_flags);
	expect(!(flags_out & DIRECTION) == !backwards, &report->wrong_flags);
	expect(red_zone_out[0] == 0x5afe && red_zone_out[1] == 0x5aff, &report->wrong_red_zone);
	check_vectors();
}

static void check_memory(void)
{
	static uint8_t memory[MEMORY_BYTES];
	static uint8_t seed;

	for (int i = 0; i < MEMORY_BYTES; i++)
		if (memory[i] != (uint8_t)(seed ? i * 7 + seed : 0)) {
			add(&report->wrong_memory);
			break;
		}
	seed = (uint8_t)(seed % 200 + 1);
	for (int i = 0; i < MEMORY_BYTES; i++)
		memory[i] = (uint8_t)(i * 7 + seed);
}

static void check_mask(const sigset_t *wanted)
{
	sigset_t now;

	pthread_sigmask(SIG_SETMASK, NULL, &now);
	for (int number = 1; number < SIGRTMAX; number++)
		if (sigismember(&now, number) != sigismember(wanted, number)) {
			add(&report->wrong_mask);
			break;
		}
}

static void check_children(int options)
{
	expect(waitpid(-1, NULL, WNOHANG | options) == -1 && errno == ECHILD, &report->wrong_children);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * SECOND_NS + now.tv_nsec;
}

static bool sleeps(void)
{
	return nanosleep(&(struct timespec){.tv_nsec = PERIOD_NS}, NULL) == 0;
}

static bool sleeps_until(void)
{
	int64_t until = now_ns() + PERIOD_NS;
	struct timespec time = {until / SECOND_NS, until % SECOND_NS};

	return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == 0;
}

static bool polls(void)
{
	return poll(NULL, 0, PERIOD_NS / 1000000) == 0;
}

static bool selects(void)
{
	sigset_t none;

	sigfillset(&none);
	return pselect(0, NULL, NULL, NULL, &(struct timespec){.tv_nsec = PERIOD_NS}, &none) == 0;
}

static bool waits_on_futex(void)
{
	static uint32_t word;

	return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &(struct timespec){.tv_nsec = PERIOD_NS}, NULL, 0) == -1 &&
	       errno == ETIMEDOUT;
}

static int ends[2];

static bool reads(void)
{
	static uint8_t next;
	uint8_t value;

	return read(ends[0], &value, 1) == 1 && value == next++;
}

static void *blocks(void *call)
{
	bool (*make)(void) = (bool (*)(void))call;
	sigset_t all;

	pthread_sigmask(SIG_SETMASK, NULL, &all);
	for (;;) {
		int64_t before = now_ns();
		expect(make(), &report->wrong_results);
		expect(make == reads || now_ns() - before >= PERIOD_NS - 1000000, &report->early_returns);
		check_mask(&all);
		add(&report->blocked_calls);
	}
	return NULL;
}

static void start_threads(void)
{
	static bool (*const calls[])(void) = {sleeps, sleeps_until, polls, selects, waits_on_futex, reads};
	sigset_t all;
	sigset_t before;
	pthread_t thread;

	if (pipe(ends))
		abort();
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		if (pthread_create(&thread, NULL, blocks, (void *)calls[i]))
			abort();
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void take(int number)
{
	(void)number;
	add(&report->signals);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = take};
	sigset_t mask;
	uint8_t next = 0;

	if (argc != 3)
		return 2;
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED, open(argv[1], O_RDWR), 0);
	if (report == MAP_FAILED)
		return 2;
	choose_values();
	sigaction(SIGRTMIN, &action, NULL);
	bool blocking = !strcmp(argv[2], "block");
	if (blocking)
		start_threads();
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	while (!report->end) {
		check_processor();
		check_mask(&mask);
		if (report->rounds % 16 == 0) {
			check_memory();
			check_children(0);
			/* A signal may cut the write short of nothing: it never blocks for long. */
			if (blocking && write(ends[1], &next, 1) == 1)
				next++;
		}
		add(&report->rounds);
		report->ready = 1;
	}
	check_children(__WALL);
	return 0;
}
