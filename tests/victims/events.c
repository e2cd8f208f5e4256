/*
 * Descriptors without a name that count and wait: eventfd, timerfd and signalfd.  Counters stay, two threads play through
 * two of them, timers go on with what they had left, and a signal that is pending can be read.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { COUNT = 5, UNITS = 3, PERIOD_MS = 20, LONG_SECONDS = 3000, SLACK_SECONDS = 60, VALUE = 4242 };
#define FULL 0xfffffffffffffffeull
#define SIGNAL (SIGRTMIN + 5)

static int counter, counter_copy, semaphore, full, ping, pong;
static int periodic, unread, once, expired, disarmed, wall, boot;
static int signals;
static struct timespec wall_expiry;
static volatile bool end;
static uint64_t rounds, ticks;

static uint64_t take(int fd)
{
	uint64_t value = 0;
	return read(fd, &value, sizeof(value)) == sizeof(value) ? value : 0;
}

static bool put(int fd, uint64_t value)
{
	return write(fd, &value, sizeof(value)) == sizeof(value);
}

static void *play(void *argument)
{
	while (!end) {
		EXPECT(take(ping) == 1, "a ping got lost");
		EXPECT(put(pong, 2), "there is no pong");
	}
	return argument;
}

static void make_counters(void)
{
	counter = MUST(eventfd(COUNT, EFD_NONBLOCK | EFD_CLOEXEC));
	counter_copy = MUST(dup(counter));
	semaphore = MUST(eventfd(UNITS, EFD_SEMAPHORE | EFD_NONBLOCK));
	full = MUST(eventfd(0, EFD_NONBLOCK));
	if (!put(full, FULL))
		victim_die("filling an eventfd");
	ping = MUST(eventfd(0, 0));
	pong = MUST(eventfd(0, 0));
}

static int timer(int clock, int flags, struct timespec value, long interval_ms)
{
	struct itimerspec spec = {.it_value = value, .it_interval = {.tv_nsec = interval_ms * 1000000}};
	int fd = MUST(timerfd_create(clock, TFD_NONBLOCK));
	MUST(timerfd_settime(fd, flags, &spec, NULL));
	return fd;
}

static void make_timers(void)
{
	struct timespec soon = {.tv_nsec = PERIOD_MS * 1000000}, later = {.tv_sec = LONG_SECONDS}, never = {0};
	periodic = timer(CLOCK_MONOTONIC, 0, soon, PERIOD_MS);
	unread = timer(CLOCK_MONOTONIC, 0, soon, PERIOD_MS);
	once = timer(CLOCK_MONOTONIC, 0, later, 0);
	expired = timer(CLOCK_BOOTTIME, 0, soon, 0);
	disarmed = timer(CLOCK_REALTIME, 0, never, 0);
	MUST(clock_gettime(CLOCK_REALTIME, &wall_expiry));
	wall_expiry.tv_sec += LONG_SECONDS;
	wall = timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME, wall_expiry, 0);
	struct timespec now;
	MUST(clock_gettime(CLOCK_BOOTTIME, &now));
	now.tv_sec += LONG_SECONDS;
	boot = timer(CLOCK_BOOTTIME, TFD_TIMER_ABSTIME, now, 0);
}

static void make_signals(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGNAL);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = MUST(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
	MUST(sigqueue(getpid(), SIGNAL, (union sigval){.sival_int = VALUE}));
}

static void check_counters(void)
{
	EXPECT(take(counter_copy) == COUNT, "the counter changed");
	EXPECT(take(counter) == 0 && errno == EAGAIN, "a duplicate has a counter of its own, or waits");
	for (int unit = 0; unit < UNITS; unit++)
		EXPECT(take(semaphore) == 1, "the semaphore lacks unit %d", unit);
	EXPECT(take(semaphore) == 0 && errno == EAGAIN, "the semaphore has too many units");
	EXPECT(!put(full, 1) && errno == EAGAIN && take(full) == FULL, "the full counter is not full");
	EXPECT(fcntl(counter, F_GETFD) == FD_CLOEXEC && fcntl(counter_copy, F_GETFD) == 0, "close-on-exec changed");
	EXPECT(fcntl(ping, F_GETFL) == O_RDWR && fcntl(full, F_GETFL) == (O_RDWR | O_NONBLOCK), "flags changed");
}

static void check_left(int fd, const char *name)
{
	struct itimerspec left;
	EXPECT(timerfd_gettime(fd, &left) == 0 && left.it_value.tv_sec <= LONG_SECONDS &&
		       left.it_value.tv_sec > LONG_SECONDS - SLACK_SECONDS,
	       "%s has %lld s left", name, (long long)left.it_value.tv_sec);
}

static void check_timers(void)
{
	check_left(once, "the long timer");
	check_left(boot, "the absolute timer of the boot clock");
	struct itimerspec left;
	struct timespec now;
	EXPECT(timerfd_gettime(wall, &left) == 0 && clock_gettime(CLOCK_REALTIME, &now) == 0, "timerfd_gettime");
	double off = (double)(now.tv_sec + left.it_value.tv_sec - wall_expiry.tv_sec) +
		     (double)(now.tv_nsec + left.it_value.tv_nsec - wall_expiry.tv_nsec) / 1e9;
	EXPECT(off > -1 && off < 1, "the wall clock timer moved by %g s", off);
	EXPECT(timerfd_gettime(disarmed, &left) == 0 && left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0,
	       "the disarmed timer runs");
	EXPECT(take(disarmed) == 0 && errno == EAGAIN, "the disarmed timer expired");
	EXPECT(take(expired) == 1 && take(expired) == 0, "the expired timer did not expire once");
	EXPECT(take(unread) > 0, "the unread periodic timer has lost its expirations");
	for (uint64_t deadline = victim_now() + 50000000000ull; take(unread) == 0;) {
		if (victim_now() > deadline) {
			victim_fail("the unread periodic timer stands still");
			break;
		}
		victim_rest();
	}
	EXPECT(ticks > 0, "the periodic timer never expired");
}

static void check_signals(void)
{
	struct signalfd_siginfo info;
	EXPECT(read(signals, &info, sizeof(info)) == sizeof(info) && info.ssi_signo == (uint32_t)SIGNAL &&
		       info.ssi_int == VALUE && info.ssi_pid == (uint32_t)getpid(),
	       "the pending signal cannot be read");
	EXPECT(read(signals, &info, sizeof(info)) == -1 && errno == EAGAIN, "there is a second signal");
	MUST(sigqueue(getpid(), SIGNAL, (union sigval){.sival_int = 1}));
	EXPECT(read(signals, &info, sizeof(info)) == sizeof(info) && info.ssi_int == 1, "a new signal cannot be read");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make_counters();
	make_signals();
	make_timers();
	pthread_t player;
	if (pthread_create(&player, NULL, play, NULL) != 0)
		victim_die("pthread_create");
	struct itimerspec left;
	do {
		MUST(timerfd_gettime(expired, &left));
	} while (left.it_value.tv_nsec != 0);
	victim_ready();
	while (!victim_asked()) {
		EXPECT(put(ping, 1) && take(pong) == 2, "a pong got lost");
		rounds++;
		ticks += take(periodic);
		victim_rest();
	}
	end = true;
	EXPECT(put(ping, 1) && pthread_join(player, NULL) == 0, "the other thread does not end");
	check_counters();
	check_timers();
	check_signals();
	return victim_end();
}
