/*
 * What threads have asked of the machine: that rdtsc or cpuid fault, that some speculation stops, how errors of memory
 * end them.  Each asks for something else, and the process gives up memory that it could write and execute.  When asked they look whether it is so: by what the kernel says, and by doing it.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_GET_CPUID_ = 0x1011, ARCH_SET_CPUID_ = 0x1012, THREADS = 3, SPECULATIONS = 3, UNKNOWN = -1,
       SET_MDWE = 65, GET_MDWE = 66, REFUSE_EXEC_GAIN = 1, NO_INHERIT = 2, PAGE = 4096 };

struct asked {
	int time_stamps, cpuid, errors, speculation[SPECULATIONS];
};

static volatile uint64_t state[THREADS];
static __thread sigjmp_buf after_fault;
static bool cpuid_can_fault;

static void on_fault(int number)
{
	siglongjmp(after_fault, number);
}

static bool reading_time_faults(void)
{
	if (sigsetjmp(after_fault, 1))
		return true;
	__builtin_ia32_rdtsc();
	return false;
}

static bool cpuid_faults(void)
{
	unsigned leaf = 0;
	if (sigsetjmp(after_fault, 1))
		return true;
	__asm__ volatile("cpuid" : "+a"(leaf) : : "ebx", "ecx", "edx");
	return false;
}

static struct asked look(void)
{
	struct asked now = {UNKNOWN, (int)syscall(SYS_arch_prctl, ARCH_GET_CPUID_, 0),
			    prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), {0}};
	MUST(prctl(PR_GET_TSC, &now.time_stamps));
	for (int i = 0; i < SPECULATIONS; i++)
		now.speculation[i] = prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0);
	return now;
}

static void verify(int number, const struct asked *before)
{
	struct asked now = look();
	EXPECT(memcmp(&now, before, sizeof(now)) == 0,
	       "thread %d had TSC %d, CPUID %d, errors %d, speculation %x %x %x; has TSC %d, CPUID %d, errors %d, speculation %x %x %x",
	       number, before->time_stamps, before->cpuid, before->errors, before->speculation[0], before->speculation[1],
	       before->speculation[2], now.time_stamps, now.cpuid, now.errors, now.speculation[0], now.speculation[1],
	       now.speculation[2]);
	EXPECT(reading_time_faults() == (before->time_stamps == PR_TSC_SIGSEGV), "rdtsc of thread %d does otherwise", number);
	EXPECT(cpuid_faults() == (cpuid_can_fault && before->cpuid == 0), "cpuid of thread %d does otherwise", number);
}

/* Speculation that a thread may choose is set to this. */
static void speculate(int what, unsigned long how)
{
	if (prctl(PR_GET_SPECULATION_CTRL, what, 0, 0, 0) & PR_SPEC_PRCTL)
		MUST(prctl(PR_SET_SPECULATION_CTRL, what, how, 0, 0));
}

static void ask(int number)
{
	if (number == 0) {
		MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
		speculate(PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE);
	} else if (number == 1) { /* no clock_gettime(2) from here on: it reads the time by rdtsc */
		MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0));
		MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
		speculate(PR_SPEC_INDIRECT_BRANCH, PR_SPEC_FORCE_DISABLE);
	} else {
		MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_DEFAULT, 0, 0));
		cpuid_can_fault = syscall(SYS_arch_prctl, ARCH_SET_CPUID_, 0) == 0; /* not every processor can */
		speculate(PR_SPEC_STORE_BYPASS, PR_SPEC_ENABLE);
	}
}

/* Gives up memory that can be written and executed; which of it, older kernels do not know. */
static int give_up_rights(void)
{
	if (prctl(SET_MDWE, REFUSE_EXEC_GAIN | NO_INHERIT, 0, 0, 0) != 0)
		prctl(SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0);
	return prctl(GET_MDWE, 0, 0, 0, 0);
}

static void verify_rights(int given_up)
{
	void *area = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int now = prctl(GET_MDWE, 0, 0, 0, 0);
	EXPECT(now == given_up, "had given up %d, has %d", given_up, now);
	EXPECT((area == MAP_FAILED) == (given_up > 0), "memory can be written and executed after all");
}

static void *live(void *argument)
{
	int number = (int)(intptr_t)argument;
	ask(number);
	struct asked before = look();
	state[number] = 1;
	while (state[number] == 1)
		victim_rest();
	verify(number, &before);
	return argument;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS];
	victim_begin(argc, argv);
	struct sigaction action = {.sa_handler = on_fault};
	MUST(sigaction(SIGSEGV, &action, NULL));
	for (intptr_t i = 1; i < THREADS; i++) {
		if (pthread_create(&threads[i], NULL, live, (void *)i) != 0)
			victim_die("pthread_create");
		victim_reaches(&state[i], 1);
	}
	ask(0);
	struct asked before = look();
	int given_up = give_up_rights();
	victim_ready();
	while (!victim_asked())
		victim_rest();
	verify(0, &before);
	verify_rights(given_up);
	for (int i = 1; i < THREADS; i++) {
		state[i] = 2;
		pthread_join(threads[i], NULL);
	}
	return victim_end();
}
