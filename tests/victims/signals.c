/*
 * Signals: handlers of every kind, masks, an alternate stack, signals that are pending for the process and for a thread
 * with all they carry, and a thread that is inside a handler on its alternate stack.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SIGNALS = 64, STACK_BYTES = 64 << 10, FIRST_VALUE = 0x51, VALUES = 3 };
#define QUEUED (SIGRTMIN + 3)
#define DIRECTED (SIGRTMIN + 4)
#define LINGERING (SIGRTMIN + 5)
#define BLOCKED SIGTERM

/* struct kernel_sigaction */
struct action {
	uint64_t handler, flags, restorer, mask;
};

static struct action actions[SIGNALS + 1];
static unsigned char *stack;
static volatile sig_atomic_t plain_calls, rich_calls, once_calls;
static volatile int rich_value, rich_code;
static volatile uintptr_t rich_frame;
static volatile bool lingering, linger_end, receiver_ready, receiver_end;

static void on_plain(int number)
{
	(void)number;
	plain_calls++;
}

static void on_once(int number)
{
	(void)number;
	once_calls++;
}

static void on_rich(int number, siginfo_t *info, void *context)
{
	char here;
	(void)number;
	(void)context;
	rich_value = info->si_value.sival_int;
	rich_code = info->si_code;
	rich_frame = (uintptr_t)&here;
	rich_calls++;
}

static void on_linger(int number)
{
	(void)number;
	lingering = true;
	while (!linger_end)
		victim_rest();
}

static void read_actions(struct action found[SIGNALS + 1])
{
	memset(found, 0, (SIGNALS + 1) * sizeof(*found));
	for (int number = 1; number <= SIGNALS; number++)
		MUST(syscall(SYS_rt_sigaction, number, NULL, &found[number], 8));
}

static uint64_t mask(void)
{
	uint64_t set = 0;
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &set, 8);
	return set;
}

static unsigned char *use_alternate_stack(void)
{
	unsigned char *memory =
		MUST(mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	stack_t altstack = {.ss_sp = memory, .ss_size = STACK_BYTES};
	MUST(sigaltstack(&altstack, NULL));
	return memory;
}

static void block(int number)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, number);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void install(void)
{
	struct sigaction plain = {.sa_handler = on_plain, .sa_flags = SA_RESTART};
	sigaddset(&plain.sa_mask, SIGCHLD);
	MUST(sigaction(SIGUSR1, &plain, NULL));
	struct sigaction rich = {.sa_sigaction = on_rich, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	MUST(sigaction(SIGUSR2, &rich, NULL));
	struct sigaction once = {.sa_handler = on_once, .sa_flags = SA_RESETHAND | SA_NODEFER};
	MUST(sigaction(SIGHUP, &once, NULL));
	struct sigaction linger = {.sa_handler = on_linger, .sa_flags = SA_ONSTACK};
	sigfillset(&linger.sa_mask);
	MUST(sigaction(LINGERING, &linger, NULL));
	MUST((intptr_t)signal(SIGPIPE, SIG_IGN));
}

/* Takes the next of one signal without waiting. */
static bool take(int number, siginfo_t *info)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, number);
	memset(info, 0, sizeof(*info));
	return sigtimedwait(&set, info, &(struct timespec){0}) == number;
}

/* A thread with a signal of its own pending, blocked in it alone. */
static void *receive(void *argument)
{
	block(DIRECTED);
	block(SIGUSR2); /* has no alternate stack here */
	pthread_kill(pthread_self(), DIRECTED);
	uint64_t before = mask();
	receiver_ready = true;
	while (!receiver_end) {
		EXPECT(mask() == before, "the mask of a thread changed");
		victim_rest();
	}
	siginfo_t info;
	EXPECT(take(DIRECTED, &info), "the signal for the thread is gone");
	EXPECT(info.si_pid == getpid(), "the signal for the thread comes from %d", info.si_pid);
	EXPECT(!take(DIRECTED, &info), "the signal for the thread came twice");
	return argument;
}

static void *linger(void *argument)
{
	unsigned char *own_stack = use_alternate_stack();
	uint64_t before = mask();
	pthread_kill(pthread_self(), LINGERING);
	EXPECT(linger_end, "a thread came out of its handler");
	EXPECT(mask() == before, "the mask after a handler is not the one before");
	stack_t now;
	EXPECT(sigaltstack(NULL, &now) == 0 && now.ss_sp == own_stack && now.ss_flags == 0,
	       "the alternate stack of a thread changed");
	return argument;
}

static void check_pending(void)
{
	siginfo_t info;
	for (int index = 0; index < VALUES; index++) {
		EXPECT(take(QUEUED, &info), "queued signal %d is gone", index);
		EXPECT(info.si_value.sival_int == FIRST_VALUE + index, "queued signal %d carries %d", index,
		       info.si_value.sival_int);
		EXPECT(info.si_code == SI_QUEUE && info.si_pid == getpid() && info.si_uid == getuid(),
		       "queued signal %d has another origin", index);
	}
	EXPECT(!take(QUEUED, &info), "a queued signal came twice");
	EXPECT(take(BLOCKED, &info), "the blocked signal is gone");
	EXPECT(info.si_code == SI_USER && info.si_pid == getpid(), "the blocked signal has another origin");
}

static void check_handlers(void)
{
	struct action now[SIGNALS + 1];
	read_actions(now);
	for (int number = 1; number <= SIGNALS; number++)
		EXPECT(memcmp(&now[number], &actions[number], sizeof(now[number])) == 0, "the action of signal %d changed",
		       number);
	raise(SIGUSR1);
	EXPECT(plain_calls == 1, "the plain handler ran %d times", (int)plain_calls);
	raise(SIGPIPE);
	raise(SIGHUP);
	EXPECT(once_calls == 1, "the handler for once ran %d times", (int)once_calls);
	sigqueue(getpid(), SIGUSR2, (union sigval){.sival_int = 77});
	EXPECT(rich_calls == 1 && rich_value == 77 && rich_code == SI_QUEUE, "the handler was not told what was sent");
	EXPECT(rich_frame - (uintptr_t)stack < STACK_BYTES, "the handler did not run on the alternate stack");
	struct action reset;
	syscall(SYS_rt_sigaction, SIGHUP, NULL, &reset, 8);
	EXPECT(reset.handler == 0, "the handler for once is still there");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	stack = use_alternate_stack();
	install();
	block(BLOCKED);
	block(QUEUED);
	pthread_t receiver, lingerer;
	if (pthread_create(&receiver, NULL, receive, NULL) != 0 || pthread_create(&lingerer, NULL, linger, NULL) != 0)
		victim_die("pthread_create");
	for (int index = 0; index < VALUES; index++)
		MUST(sigqueue(getpid(), QUEUED, (union sigval){.sival_int = FIRST_VALUE + index}));
	MUST(kill(getpid(), BLOCKED));
	while (!lingering || !receiver_ready)
		victim_rest();
	read_actions(actions);
	uint64_t before = mask();
	victim_ready();
	while (!victim_asked()) {
		EXPECT(mask() == before, "the signal mask changed");
		EXPECT(plain_calls + rich_calls + once_calls == 0, "a handler ran that nobody called");
		victim_rest();
	}
	check_pending();
	check_handlers();
	receiver_end = linger_end = true;
	pthread_join(receiver, NULL);
	pthread_join(lingerer, NULL);
	return victim_end();
}
