/*
 * Faults that a program handles itself, as those with collectors and emulators do: a thread for each kind is at one nearly all
 * the time.  Each must be told of its own fault and no other, and none may be taken for harmless.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

static void write_to(char *place)
{
	*(volatile char *)place = 1;
}

static void read_from(char *place)
{
	(void)*(volatile char *)place;
}

static void divide(char *place)
{
	(void)place;
	__asm__ volatile("cdq; idivl %0" : : "r"(0) : "eax", "edx", "cc");
}

static void execute_nonsense(char *place)
{
	(void)place;
	__asm__ volatile("ud2");
}

static struct kind {
	void (*fault)(char *place);
	int signal, code;
	char *place; /* that the signal names; NULL: any */
	volatile uint64_t rounds;
} kinds[] = {
	{.fault = write_to, .signal = SIGSEGV, .code = SEGV_ACCERR},
	{.fault = read_from, .signal = SIGBUS, .code = BUS_ADRERR},
	{.fault = divide, .signal = SIGFPE, .code = FPE_INTDIV},
	{.fault = execute_nonsense, .signal = SIGILL, .code = ILL_ILLOPN},
};

static __thread struct kind *mine;
static __thread sigjmp_buf before;
static volatile bool end;

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)context;
	EXPECT(number == mine->signal && info->si_code == mine->code, "signal %d with code %d instead of %d with %d", number,
	       info->si_code, mine->signal, mine->code);
	EXPECT(!mine->place || info->si_addr == mine->place, "signal %d is about another place", number);
	siglongjmp(before, 1);
}

static void *keep_faulting(void *kind)
{
	mine = kind;
	while (!end) {
		if (sigsetjmp(before, 1) == 0) {
			mine->fault(mine->place);
			victim_fail("signal %d did not come", mine->signal);
		}
		mine->rounds++;
	}
	return kind;
}

static void *map_page(int rights, int flags, int fd)
{
	return MUST(mmap(NULL, PAGE, rights, MAP_PRIVATE | flags, fd, 0));
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	kinds[0].place = map_page(PROT_READ, MAP_ANONYMOUS, -1);
	int empty = (int)MUST(open(victim_path("empty"), O_RDWR | O_CREAT, 0600));
	kinds[1].place = map_page(PROT_READ, 0, empty);
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	pthread_t threads[ARRAY_LENGTH(kinds)];
	for (size_t index = 0; index < ARRAY_LENGTH(kinds); index++) {
		MUST(sigaction(kinds[index].signal, &action, NULL));
		if (pthread_create(&threads[index], NULL, keep_faulting, &kinds[index]) != 0)
			victim_die("pthread_create");
	}
	for (size_t index = 0; index < ARRAY_LENGTH(kinds); index++)
		victim_reaches(&kinds[index].rounds, 1);
	victim_ready();
	while (!victim_asked())
		victim_rest();
	for (size_t index = 0; index < ARRAY_LENGTH(kinds); index++)
		EXPECT(victim_reaches(&kinds[index].rounds, kinds[index].rounds + 100), "signal %d does not come any more",
		       kinds[index].signal);
	end = true;
	for (size_t index = 0; index < ARRAY_LENGTH(kinds); index++)
		EXPECT(pthread_join(threads[index], NULL) == 0, "a thread cannot be joined");
	return victim_end();
}
