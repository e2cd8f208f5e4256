/*
 * Registers: threads fill the general registers, and the widest vector registers the CPU has (AVX-512 with its mask
 * registers, AVX2, or SSE), with patterns of their own, spin, and compare what is in them then.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <pthread.h>
#include <string.h>

enum { BANK_BYTES = 32 * 64 + 8 * 8, SPINS = 300000, THREADS = 3 };

/*
 * hold_KIND(load, store, spins): fills the registers of one kind from `load`, counts `spins` down, and puts them into
 * `store`.  In assembly because no instruction of a compiler may come in between.
 */
typedef void hold_function(const void *load, void *store, uint64_t spins);
extern hold_function hold_general, hold_sse, hold_avx2, hold_avx512;

#define SIXTEEN "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
#define THIRTY_TWO SIXTEEN ",16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
#define FOR_ALL(numbers, instruction) ".irp i," numbers "\n" instruction "\n.endr\n"
#define SPIN(label) label ": dec %rdx\n jnz " label "b\n"

__asm__(".text\n"
	"hold_sse:\n"
	FOR_ALL(SIXTEEN, "movdqu \\i*64(%rdi), %xmm\\i")
	SPIN("1")
	FOR_ALL(SIXTEEN, "movdqu %xmm\\i, \\i*64(%rsi)")
	"ret\n"
	"hold_avx2:\n"
	FOR_ALL(SIXTEEN, "vmovdqu \\i*64(%rdi), %ymm\\i")
	SPIN("2")
	FOR_ALL(SIXTEEN, "vmovdqu %ymm\\i, \\i*64(%rsi)")
	"vzeroupper\n ret\n"
	"hold_avx512:\n"
	FOR_ALL(THIRTY_TWO, "vmovdqu64 \\i*64(%rdi), %zmm\\i")
	FOR_ALL("0,1,2,3,4,5,6,7", "kmovq 2048+\\i*8(%rdi), %k\\i")
	SPIN("3")
	FOR_ALL(THIRTY_TWO, "vmovdqu64 %zmm\\i, \\i*64(%rsi)")
	FOR_ALL("0,1,2,3,4,5,6,7", "kmovq %k\\i, 2048+\\i*8(%rsi)")
	"vzeroupper\n ret\n"
	"hold_general:\n"
	"push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n push %rsi\n"
	"mov 0(%rdi), %rax\n mov 8(%rdi), %rbx\n mov 16(%rdi), %rcx\n mov 24(%rdi), %rbp\n mov 32(%rdi), %r8\n"
	"mov 40(%rdi), %r9\n mov 48(%rdi), %r10\n mov 56(%rdi), %r11\n mov 64(%rdi), %r12\n mov 72(%rdi), %r13\n"
	"mov 80(%rdi), %r14\n mov 88(%rdi), %r15\n mov 96(%rdi), %rsi\n mov 104(%rdi), %rdi\n"
	"mov %rax, -8(%rsp)\n" /* in the red zone, which signal frames and tracers must leave alone */
	SPIN("4")
	"xchg %rsi, (%rsp)\n" /* now rsi is `store` */
	"mov -8(%rsp), %rdx\n cmp %rdx, %rax\n jne 5f\n"
	"mov %rax, 0(%rsi)\n 5: mov %rbx, 8(%rsi)\n mov %rcx, 16(%rsi)\n mov %rbp, 24(%rsi)\n mov %r8, 32(%rsi)\n"
	"mov %r9, 40(%rsi)\n mov %r10, 48(%rsi)\n mov %r11, 56(%rsi)\n mov %r12, 64(%rsi)\n mov %r13, 72(%rsi)\n"
	"mov %r14, 80(%rsi)\n mov %r15, 88(%rsi)\n mov %rdi, 104(%rsi)\n pop %rax\n mov %rax, 96(%rsi)\n"
	"pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n");

struct work {
	hold_function *hold;
	size_t bytes; /* of a register */
	int registers;
	int masks;
	const char *kind;
	volatile uint64_t rounds;
};

static volatile bool end;

static void check(const struct work *work, const unsigned char *expected, const unsigned char *found)
{
	size_t stride = work->bytes == 8 ? 8 : 64;
	for (int number = 0; number < work->registers; number++)
		EXPECT(memcmp(expected + (size_t)number * stride, found + (size_t)number * stride, work->bytes) == 0,
		       "%s register %d changed", work->kind, number);
	for (int number = 0; number < work->masks; number++)
		EXPECT(memcmp(expected + 2048 + number * 8, found + 2048 + number * 8, 8) == 0, "mask register %d changed",
		       number);
}

static void *hold_on(void *argument)
{
	struct work *work = argument;
	unsigned char load[BANK_BYTES], store[BANK_BYTES];
	while (!end) {
		for (size_t index = 0; index < sizeof(load); index++)
			load[index] = (unsigned char)(index * 7 + work->rounds * 13 + (uintptr_t)work / 64 + 1);
		memset(store, 0, sizeof(store));
		work->hold(load, store, SPINS);
		check(work, load, store);
		work->rounds++;
	}
	return NULL;
}

static struct work widest_vectors(void)
{
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
		return (struct work){.hold = hold_avx512, .bytes = 64, .registers = 32, .masks = 8, .kind = "AVX-512"};
	if (__builtin_cpu_supports("avx2"))
		return (struct work){.hold = hold_avx2, .bytes = 32, .registers = 16, .kind = "AVX"};
	return (struct work){.hold = hold_sse, .bytes = 16, .registers = 16, .kind = "SSE"};
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	struct work works[THREADS] = {
		widest_vectors(),
		widest_vectors(),
		{.hold = hold_general, .bytes = 8, .registers = 14, .kind = "general"},
	};
	pthread_t handles[THREADS];
	for (int index = 0; index < THREADS; index++)
		if (pthread_create(&handles[index], NULL, hold_on, &works[index]) != 0)
			victim_die("pthread_create");
	for (int index = 0; index < THREADS; index++)
		victim_reaches(&works[index].rounds, 2);
	victim_ready();
	while (!victim_asked())
		victim_rest();
	for (int index = 0; index < THREADS; index++)
		EXPECT(victim_reaches(&works[index].rounds, works[index].rounds + 2), "a thread does not go on");
	end = true;
	for (int index = 0; index < THREADS; index++)
		pthread_join(handles[index], NULL);
	return victim_end();
}
