/*
 * Epoll sets: level and edge, one-shot fired and not, exclusive, nested, under numbers that are closed or another file's by
 * now, a signalfd, and a thread that waits in one.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { LEVEL, EMPTY, DUPLICATE, CLOSED, REUSED, FIRED, UNFIRED, EDGE, EXCLUSIVE, SIGNALS, NAMES };
#define DATA(name) (0xabcdef0000000000ull + (name))
#define SIGNAL (SIGRTMIN + 5)

static const char *const names[NAMES] = {"level",   "empty", "duplicate", "closed", "reused",
					 "fired", "unfired", "edge", "exclusive", "signals"};
static int set, outer, waited, wake, signals;
static int ready[2], empty[2], closed[2], reused[2], edge, exclusive;
static int duplicate, closed_copy, reused_copy, closed_number, reused_number;
static volatile bool woken;

static void watch(int where, int fd, uint32_t events, int name)
{
	struct epoll_event event = {.events = events, .data.u64 = DATA(name)};
	MUST(epoll_ctl(where, EPOLL_CTL_ADD, fd, &event));
}

static void make_pipe(int ends[2], bool filled)
{
	MUST(pipe2(ends, O_NONBLOCK));
	if (filled && write(ends[1], "x", 1) != 1)
		victim_die("write");
}

static void make_signals(void)
{
	sigset_t mask;
	sigemptyset(&mask);
	sigaddset(&mask, SIGNAL);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	signals = MUST(signalfd(-1, &mask, SFD_NONBLOCK));
}

static void fire(void)
{
	struct epoll_event event;
	watch(set, ready[1], EPOLLOUT | EPOLLONESHOT, FIRED);
	if (epoll_wait(set, &event, 1, 0) != 1 || event.data.u64 != DATA(FIRED))
		victim_die("epoll_wait");
}

static void make_sets(void)
{
	set = MUST(epoll_create1(EPOLL_CLOEXEC));
	outer = MUST(epoll_create1(0));
	waited = MUST(epoll_create1(0));
	make_pipe(ready, true);
	make_pipe(empty, false);
	make_pipe(closed, true);
	make_pipe(reused, true);
	fire();
	watch(set, ready[0], EPOLLIN, LEVEL);
	watch(set, empty[0], EPOLLIN | EPOLLRDHUP, EMPTY);
	duplicate = MUST(dup(ready[0]));
	watch(set, duplicate, EPOLLIN, DUPLICATE);
	closed_copy = MUST(fcntl(closed[0], F_DUPFD, 60));
	reused_copy = MUST(fcntl(reused[0], F_DUPFD, 70));
	watch(set, closed_number = closed[0], EPOLLIN, CLOSED);
	watch(set, reused_number = reused[0], EPOLLIN, REUSED);
	MUST(dup3(empty[1], reused_number, O_CLOEXEC));
	watch(set, empty[1], EPOLLOUT | EPOLLONESHOT, UNFIRED);
	edge = MUST(eventfd(1, EFD_NONBLOCK));
	watch(set, edge, EPOLLIN | EPOLLET, EDGE);
	exclusive = MUST(eventfd(1, EFD_NONBLOCK));
	watch(set, exclusive, EPOLLIN | EPOLLEXCLUSIVE, EXCLUSIVE);
	make_signals();
	watch(set, signals, EPOLLIN, SIGNALS);
	watch(outer, set, EPOLLIN, LEVEL);
	wake = MUST(eventfd(0, EFD_NONBLOCK));
	watch(waited, wake, EPOLLIN, LEVEL);
	close(closed_number);
}

static void *wait_for_ever(void *argument)
{
	struct epoll_event event;
	int count = epoll_wait(waited, &event, 1, -1);
	EXPECT(count == 1 && event.data.u64 == DATA(LEVEL), "epoll_wait returned %d, errno %d", count, errno);
	woken = true;
	return argument;
}

/* What the set reports now, once each. */
static uint32_t reported(void)
{
	struct epoll_event events[NAMES + 5];
	uint32_t found = 0;
	int count = epoll_wait(set, events, ARRAY_LENGTH(events), 0);
	for (int index = 0; index < count; index++) {
		uint64_t name = events[index].data.u64 - DATA(0);
		EXPECT(name < NAMES, "an event has other data: %llx", (unsigned long long)events[index].data.u64);
		if (name < NAMES) {
			EXPECT(!(found & 1u << name), "%s is reported twice", names[name]);
			found |= 1u << name;
		}
	}
	return found;
}

static void expect(uint32_t wanted, const char *when)
{
	uint32_t found = reported();
	for (int name = 0; name < NAMES; name++)
		EXPECT((found & 1u << name) == (wanted & 1u << name), "%s is %sreported %s", names[name],
		       found & 1u << name ? "" : "not ", when);
}

static void check(void)
{
	struct epoll_event event = {.events = EPOLLOUT | EPOLLONESHOT, .data.u64 = DATA(FIRED)};
	const uint32_t lasting = 1u << LEVEL | 1u << DUPLICATE | 1u << CLOSED | 1u << REUSED | 1u << EXCLUSIVE;
	EXPECT(epoll_wait(outer, &event, 1, 0) == 1 && event.data.u64 == DATA(LEVEL), "the outer set reports nothing");
	expect(lasting | 1u << UNFIRED | 1u << EDGE, "at first");
	expect(lasting, "again");
	EXPECT(fcntl(closed_number, F_GETFD) == -1, "the closed descriptor is open");
	EXPECT(fcntl(reused_number, F_GETFD) == FD_CLOEXEC && write(reused_number, "y", 1) == 1, "the other file is gone");
	expect(lasting | 1u << EMPTY, "when the empty pipe is not empty");
	MUST(sigqueue(getpid(), SIGNAL, (union sigval){.sival_int = 1}));
	expect(lasting | 1u << EMPTY | 1u << SIGNALS, "when a signal is pending");
	event = (struct epoll_event){.events = EPOLLOUT | EPOLLONESHOT, .data.u64 = DATA(FIRED)};
	EXPECT(epoll_ctl(set, EPOLL_CTL_MOD, ready[1], &event) == 0, "the fired one cannot be armed");
	expect(lasting | 1u << EMPTY | 1u << SIGNALS | 1u << FIRED, "when the fired one is armed again");
	EXPECT(eventfd_write(edge, 1) == 0, "eventfd_write");
	expect(lasting | 1u << EMPTY | 1u << SIGNALS | 1u << EDGE, "after an edge");
	EXPECT(epoll_ctl(set, EPOLL_CTL_DEL, duplicate, NULL) == 0 && epoll_ctl(set, EPOLL_CTL_DEL, ready[0], NULL) == 0,
	       "the registrations of the pipe are not separate");
	char byte;
	EXPECT(read(closed_copy, &byte, 1) == 1 && read(reused_copy, &byte, 1) == 1, "the pipes are not those watched");
	expect(1u << EXCLUSIVE | 1u << EMPTY | 1u << SIGNALS, "in the end");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make_sets();
	pthread_t waiter;
	if (pthread_create(&waiter, NULL, wait_for_ever, NULL) != 0)
		victim_die("pthread_create");
	victim_ready();
	while (!victim_asked()) {
		EXPECT(!woken, "epoll_wait returned by itself");
		victim_rest();
	}
	check();
	EXPECT(eventfd_write(wake, 1) == 0 && pthread_join(waiter, NULL) == 0, "the other thread does not end");
	return victim_end();
}
