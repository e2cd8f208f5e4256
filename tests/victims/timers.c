/*
 * Timers: the interval timers, and POSIX timers of several kinds and clocks with a hole in their numbers.  Periodic ones
 * must go on, and long ones have left what they had, less what has passed (nothing passes while the process is not).
 */
#define _GNU_SOURCE
#include "victim.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PERIOD_MS = 20, LONG_SECONDS = 3000, SLACK_SECONDS = 300, TIMERS = 6, HOLE = 1 };
enum { PERIODIC = 0, DIRECTED = 2, SILENT = 3, DISARMED = 4, CPU = 5 };
enum { KERNEL_SIGEV_SIGNAL = 0, KERNEL_SIGEV_NONE = 1, KERNEL_SIGEV_THREAD_ID = 4 };
#define PERIODIC_SIGNAL (SIGRTMIN + 6)
#define DIRECTED_SIGNAL (SIGRTMIN + 7)

/* struct sigevent of the kernel: numbers, not pointers to libraries' own data */
struct event {
	uint64_t value;
	int32_t signal, notify, tid;
	char padding[44];
};

static volatile uint64_t alarms, virtual_alarms, periodic, directed;
static volatile pid_t helper_tid;
static volatile bool end;

static void on_alarm(int number)
{
	(void)number;
	alarms++;
}

static void on_virtual_alarm(int number)
{
	(void)number;
	virtual_alarms++;
}

static void on_periodic(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	EXPECT(info->si_code == SI_TIMER && info->si_value.sival_int == 0x1234, "a timer does not say what it was told");
	periodic++;
}

static void on_directed(int number)
{
	(void)number;
	EXPECT(victim_tid() == helper_tid, "a timer woke another thread");
	directed++;
}

static void *help(void *argument)
{
	helper_tid = victim_tid();
	while (!end)
		victim_rest();
	return argument;
}

static void handle(int number, void (*plain)(int), void (*rich)(int, siginfo_t *, void *))
{
	struct sigaction action = {.sa_flags = SA_RESTART | (rich ? SA_SIGINFO : 0)};
	if (rich)
		action.sa_sigaction = rich;
	else
		action.sa_handler = plain;
	MUST(sigaction(number, &action, NULL));
}

static void start_interval_timers(void)
{
	struct itimerval short_one = {.it_value = {0, PERIOD_MS * 1000}, .it_interval = {0, PERIOD_MS * 1000}};
	struct itimerval long_one = {.it_value = {LONG_SECONDS, 0}, .it_interval = {7, 500}};
	MUST(setitimer(ITIMER_REAL, &short_one, NULL));
	MUST(setitimer(ITIMER_VIRTUAL, &short_one, NULL));
	MUST(setitimer(ITIMER_PROF, &long_one, NULL));
}

static void create(int expected, clockid_t clock, struct event event, long milliseconds, long interval_milliseconds)
{
	int number = -1;
	MUST(syscall(SYS_timer_create, clock, &event, &number));
	if (number != expected)
		victim_die("timer_create gave another number");
	struct itimerspec when = {
		.it_value = {milliseconds / 1000, milliseconds % 1000 * 1000000},
		.it_interval = {interval_milliseconds / 1000, interval_milliseconds % 1000 * 1000000},
	};
	MUST(syscall(SYS_timer_settime, number, 0, &when, NULL));
}

static void start_timers(void)
{
	struct event silent = {.notify = KERNEL_SIGEV_NONE};
	create(PERIODIC, CLOCK_MONOTONIC, (struct event){.value = 0x1234, .signal = PERIODIC_SIGNAL}, PERIOD_MS, PERIOD_MS);
	create(HOLE, CLOCK_MONOTONIC, silent, 0, 0);
	create(DIRECTED, CLOCK_REALTIME,
	       (struct event){.signal = DIRECTED_SIGNAL, .notify = KERNEL_SIGEV_THREAD_ID, .tid = helper_tid}, PERIOD_MS,
	       PERIOD_MS);
	create(SILENT, CLOCK_BOOTTIME, silent, LONG_SECONDS * 1000L, 5000);
	create(DISARMED, CLOCK_MONOTONIC, silent, 0, 0);
	create(CPU, CLOCK_PROCESS_CPUTIME_ID, silent, LONG_SECONDS * 1000L, 0);
	MUST(syscall(SYS_timer_delete, HOLE));
}

static void check_left(const char *what, long seconds)
{
	EXPECT(seconds <= LONG_SECONDS && seconds >= LONG_SECONDS - SLACK_SECONDS, "%s has %ld of %d s left", what, seconds,
	       LONG_SECONDS);
}

static void check_remains(void)
{
	struct itimerval profile;
	getitimer(ITIMER_PROF, &profile);
	check_left("the profiling timer", profile.it_value.tv_sec);
	EXPECT(profile.it_interval.tv_sec == 7 && profile.it_interval.tv_usec / 1000 == 0, "its interval changed");
	struct itimerspec left;
	EXPECT(syscall(SYS_timer_gettime, SILENT, &left) == 0, "a silent timer is gone");
	check_left("the silent timer", left.it_value.tv_sec);
	EXPECT(left.it_interval.tv_sec == 5 && left.it_interval.tv_nsec == 0, "the interval of a timer changed");
	EXPECT(syscall(SYS_timer_gettime, CPU, &left) == 0, "a timer of CPU time is gone");
	check_left("the timer of CPU time", left.it_value.tv_sec);
	EXPECT(syscall(SYS_timer_gettime, DISARMED, &left) == 0, "a disarmed timer is gone");
	EXPECT(left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0, "a disarmed timer runs");
	EXPECT(syscall(SYS_timer_gettime, HOLE, &left) == -1, "a deleted timer is back");
	EXPECT(syscall(SYS_timer_gettime, TIMERS, &left) == -1, "there is a timer too many");
}

/* ITIMER_VIRTUAL counts time in user mode only. */
static void spin_until(const volatile uint64_t *counter, uint64_t value)
{
	uint64_t deadline = victim_now() + 50000000000ull;
	while (*counter < value && victim_now() < deadline)
		;
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	handle(SIGALRM, on_alarm, NULL);
	handle(SIGVTALRM, on_virtual_alarm, NULL);
	handle(PERIODIC_SIGNAL, NULL, on_periodic);
	handle(DIRECTED_SIGNAL, on_directed, NULL);
	pthread_t helper;
	if (pthread_create(&helper, NULL, help, NULL) != 0)
		victim_die("pthread_create");
	while (helper_tid == 0)
		victim_rest();
	start_interval_timers();
	start_timers();
	victim_reaches(&periodic, 2);
	victim_ready();
	while (!victim_asked())
		victim_rest();
	EXPECT(victim_reaches(&alarms, alarms + 3), "the real interval timer stands still");
	EXPECT(victim_reaches(&periodic, periodic + 3), "the periodic timer stands still");
	EXPECT(victim_reaches(&directed, directed + 3), "the timer of a thread stands still");
	uint64_t next = virtual_alarms + 2;
	spin_until(&virtual_alarms, next);
	EXPECT(virtual_alarms >= next, "the virtual interval timer stands still");
	check_remains();
	end = true;
	pthread_join(helper, NULL);
	return victim_end();
}
