/*
 * One thread in each kind of blocking call that the kernel restarts by itself, or that crd has to (no EINTR may show).
 * Short sleeps repeat all the time and must neither fail nor end early; the others wait until the main thread wakes
 * them, and must return what they were woken with.
 *
 * A lock that only another process can hold is held by one that is not our child, until PREFIX.verify appears.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129, FUTEX_U32_PRIVATE = 130, NR_FUTEX_WAITV = 449 };
enum { SHORT_NS = 150000000, HOLDER_SECONDS = 300 };
#define WAITED (SIGRTMIN + 8)

static volatile bool woken, end;
static uint32_t futex_word, futex_vector_word;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, condition_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static bool condition_met;
static int flock_held, flock_waiting;

struct blocker {
	const char *name;
	void (*wait)(struct blocker *me);
	void (*wake)(struct blocker *me);
	pthread_t handle;
	volatile pid_t tid;
	int *pipe; /* or a pair of sockets, at the first of which everything has a timeout */
	bool at_socket;
	volatile bool done;
};

#define RETURNED(condition, what)                                                                                      \
	do {                                                                                                           \
		int error_ = errno;                                                                                    \
		EXPECT(condition, "%s: %s (errno %s)", me->name, what, strerror(error_));                              \
		EXPECT(woken, "%s returned before it was woken", me->name);                                            \
	} while (0)

static const struct timespec hour = {.tv_sec = 3600};

static void wake_pipe(struct blocker *me)
{
	EXPECT(write(me->pipe[1], "x", 1) == 1, "%s: cannot be woken", me->name);
}

static void wait_read(struct blocker *me)
{
	char byte = 0;
	ssize_t count = read(me->pipe[0], &byte, 1);
	RETURNED(count == 1 && byte == 'x', "did not read");
}

static void wait_write(struct blocker *me)
{
	static char fill[65536];
	ssize_t count = 0;
	for (size_t filled = 0; filled < sizeof(fill); filled += (size_t)count)
		if ((count = write(me->pipe[1], fill, sizeof(fill) - filled)) <= 0)
			victim_die("write");
	count = write(me->pipe[1], "y", 1);
	RETURNED(count == 1, "did not write");
}

static void wake_writer(struct blocker *me)
{
	static char drain[65536];
	EXPECT(read(me->pipe[0], drain, sizeof(drain)) > 0, "%s: cannot be woken", me->name);
}

static void wait_readv(struct blocker *me)
{
	char byte = 0;
	struct iovec place = {&byte, 1};
	ssize_t count = readv(me->pipe[0], &place, 1);
	RETURNED(count == 1 && byte == 'x', "did not read");
}

static void wait_recv(struct blocker *me)
{
	char byte = 0;
	ssize_t count = recv(me->pipe[0], &byte, 1, 0);
	RETURNED(count == 1 && byte == 'x', "did not read");
}

static void wait_recvmmsg(struct blocker *me)
{
	char byte = 0;
	struct iovec place = {&byte, 1};
	struct mmsghdr message = {.msg_hdr = {.msg_iov = &place, .msg_iovlen = 1}};
	int count = recvmmsg(me->pipe[0], &message, 1, 0, NULL);
	RETURNED(count == 1 && byte == 'x', "did not read");
}

static void wait_splice(struct blocker *me)
{
	int sink[2];
	MUST(pipe2(sink, O_CLOEXEC));
	ssize_t count = splice(me->pipe[0], NULL, sink[1], NULL, 1, 0);
	RETURNED(count == 1, "did not splice");
}

static void fill(struct blocker *me)
{
	static char much[65536];
	for (size_t size = sizeof(much); size > 0; size /= 2)
		while (send(me->pipe[0], much, size, MSG_DONTWAIT) > 0)
			;
}

static void wait_socket_write(struct blocker *me)
{
	fill(me);
	ssize_t count = write(me->pipe[0], "y", 1);
	RETURNED(count == 1, "did not write");
}

static void wait_send(struct blocker *me)
{
	fill(me);
	ssize_t count = send(me->pipe[0], "y", 1, 0);
	RETURNED(count == 1, "did not send");
}

static void wait_sendmsg(struct blocker *me)
{
	fill(me);
	struct iovec place = {"y", 1};
	struct msghdr message = {.msg_iov = &place, .msg_iovlen = 1};
	ssize_t count = sendmsg(me->pipe[0], &message, 0);
	RETURNED(count == 1, "did not send");
}

static void wake_sender(struct blocker *me)
{
	static char drain[65536];
	while (recv(me->pipe[1], drain, sizeof(drain), MSG_DONTWAIT) > 0)
		;
}

static void be_patient(int fd)
{
	MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){.tv_sec = 3600}, sizeof(struct timeval)));
	MUST(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){.tv_sec = 3600}, sizeof(struct timeval)));
}

static struct sockaddr_in address;

static void wait_accept(struct blocker *me)
{
	socklen_t length = sizeof(address);
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int listener = (int)MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	be_patient(listener);
	MUST(bind(listener, (struct sockaddr *)&address, length));
	MUST(listen(listener, 1));
	MUST(getsockname(listener, (struct sockaddr *)&address, &length));
	int accepted = accept(listener, NULL, NULL);
	RETURNED(accepted >= 0, "did not accept");
}

static void wake_accept(struct blocker *me)
{
	int client = (int)MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	EXPECT(connect(client, (struct sockaddr *)&address, sizeof(address)) == 0, "%s: cannot be woken", me->name);
}

static void wait_poll(struct blocker *me)
{
	struct pollfd poll_for = {.fd = me->pipe[0], .events = POLLIN};
	int count = poll(&poll_for, 1, -1);
	RETURNED(count == 1 && poll_for.revents == POLLIN, "did not return the descriptor");
}

static void wait_poll_timeout(struct blocker *me)
{
	struct pollfd poll_for = {.fd = me->pipe[0], .events = POLLIN};
	int count = poll(&poll_for, 1, 3600 * 1000);
	RETURNED(count == 1 && poll_for.revents == POLLIN, "did not return the descriptor");
}

static void wait_ppoll(struct blocker *me)
{
	struct pollfd poll_for = {.fd = me->pipe[0], .events = POLLIN};
	sigset_t none;
	sigemptyset(&none);
	int count = ppoll(&poll_for, 1, &hour, &none);
	RETURNED(count == 1 && poll_for.revents == POLLIN, "did not return the descriptor");
}

static void wait_select(struct blocker *me)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(me->pipe[0], &set);
	int count = select(me->pipe[0] + 1, &set, NULL, NULL, NULL);
	RETURNED(count == 1 && FD_ISSET(me->pipe[0], &set), "did not return the descriptor");
}

static void wait_pselect(struct blocker *me)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(me->pipe[0], &set);
	sigset_t none;
	sigemptyset(&none);
	int count = pselect(me->pipe[0] + 1, &set, NULL, NULL, &hour, &none);
	RETURNED(count == 1 && FD_ISSET(me->pipe[0], &set), "did not return the descriptor");
}

static void on_signal(int number)
{
	(void)number;
}

static void wake_signal(struct blocker *me)
{
	pthread_kill(me->handle, SIGUSR1);
}

static void wait_pause(struct blocker *me)
{
	int result = pause();
	RETURNED(result == -1 && errno == EINTR, "did not end by its signal");
}

static void wait_sigsuspend(struct blocker *me)
{
	sigset_t all, before, after;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	sigset_t but_one = all;
	sigdelset(&but_one, SIGUSR1);
	int result = sigsuspend(&but_one);
	RETURNED(result == -1 && errno == EINTR, "did not end by its signal");
	pthread_sigmask(SIG_SETMASK, &before, &after);
	EXPECT(sigismember(&after, SIGUSR1) == 1, "sigsuspend did not put the mask back");
}

static void wait_sigtimedwait(struct blocker *me)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, WAITED);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	int result = sigtimedwait(&set, NULL, &hour);
	RETURNED(result == WAITED, "did not return its signal");
}

static void wake_waited(struct blocker *me)
{
	pthread_kill(me->handle, WAITED);
}

static void wait_futex(struct blocker *me)
{
	long result = syscall(SYS_futex, &futex_word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
	RETURNED(result == 0, "was not woken");
}

static void wake_futex(struct blocker *me)
{
	(void)me;
	__atomic_store_n(&futex_word, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &futex_word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

struct waiter {
	uint64_t value, address;
	uint32_t flags, reserved;
};

static void wait_futex_vector(struct blocker *me)
{
	struct waiter waiters[2] = {
		{.address = (uintptr_t)&futex_vector_word, .flags = FUTEX_U32_PRIVATE},
		{.address = (uintptr_t)&futex_vector_word, .flags = FUTEX_U32_PRIVATE},
	};
	long result = syscall(NR_FUTEX_WAITV, waiters, 2, 0, NULL, 0);
	RETURNED(result >= 0, "was not woken");
}

static void wake_futex_vector(struct blocker *me)
{
	(void)me;
	__atomic_store_n(&futex_vector_word, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &futex_vector_word, FUTEX_WAKE_PRIVATE, 2, NULL, NULL, 0);
}

static void wait_mutex(struct blocker *me)
{
	int result = pthread_mutex_lock(&mutex);
	RETURNED(result == 0, "did not get the mutex");
	pthread_mutex_unlock(&mutex);
}

static void wake_mutex(struct blocker *me)
{
	(void)me;
	pthread_mutex_unlock(&mutex);
}

static void wait_condition(struct blocker *me)
{
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 3600;
	int result = 0;
	pthread_mutex_lock(&condition_mutex);
	while (!condition_met && result == 0)
		result = pthread_cond_timedwait(&condition, &condition_mutex, &until);
	pthread_mutex_unlock(&condition_mutex);
	RETURNED(result == 0, "did not see the condition");
}

static void wake_condition(struct blocker *me)
{
	(void)me;
	pthread_mutex_lock(&condition_mutex);
	condition_met = true;
	pthread_cond_signal(&condition);
	pthread_mutex_unlock(&condition_mutex);
}

static void wait_flock(struct blocker *me)
{
	int result = flock(flock_waiting, LOCK_EX);
	RETURNED(result == 0, "did not get the lock");
}

static void wake_flock(struct blocker *me)
{
	EXPECT(flock(flock_held, LOCK_UN) == 0, "%s: cannot be woken", me->name);
}

static void wait_posix_lock(struct blocker *me)
{
	int fd = MUST(open(victim_path("posix-lock"), O_RDWR | O_CLOEXEC));
	struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int result = fcntl(fd, F_SETLKW, &range);
	int error = errno;
	EXPECT(result == 0, "%s: did not get the lock: %s", me->name, strerror(error));
	EXPECT(victim_asked(), "%s returned too early", me->name);
}

static void wake_nothing(struct blocker *me)
{
	(void)me;
}

static void wait_fifo(struct blocker *me)
{
	int fd = open(victim_path("fifo"), O_RDONLY | O_CLOEXEC);
	RETURNED(fd >= 0, "was not opened");
	close(fd);
}

static void wake_fifo(struct blocker *me)
{
	int fd = open(victim_path("fifo"), O_WRONLY | O_CLOEXEC);
	EXPECT(fd >= 0, "%s: cannot be woken", me->name);
	close(fd);
}

/* Short waits without end: each must last at least as long as asked for, and end by its timeout. */
static void expect_timeout(struct blocker *me, uint64_t start, bool timed_out)
{
	EXPECT(timed_out, "%s: did not end by its timeout: %s", me->name, strerror(errno));
	EXPECT(victim_now() - start >= SHORT_NS - 1000000, "%s: ended after %llu ns", me->name,
	       (unsigned long long)(victim_now() - start));
}

static void repeat_nanosleep(struct blocker *me)
{
	struct timespec left, time = {.tv_nsec = SHORT_NS};
	while (!end) {
		uint64_t start = victim_now();
		expect_timeout(me, start, nanosleep(&time, &left) == 0);
	}
}

static void repeat_clock_nanosleep(struct blocker *me)
{
	struct timespec time = {.tv_nsec = SHORT_NS};
	while (!end) {
		uint64_t start = victim_now();
		expect_timeout(me, start, clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL) == 0);
	}
}

static void repeat_absolute_sleep(struct blocker *me)
{
	while (!end) {
		uint64_t start = victim_now(), until = start + SHORT_NS;
		struct timespec time = {.tv_sec = (time_t)(until / 1000000000), .tv_nsec = (long)(until % 1000000000)};
		expect_timeout(me, start, clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == 0);
	}
}

static void repeat_poll(struct blocker *me)
{
	while (!end) {
		uint64_t start = victim_now();
		expect_timeout(me, start, poll(NULL, 0, SHORT_NS / 1000000) == 0);
	}
}

static void repeat_futex(struct blocker *me)
{
	static uint32_t word;
	struct timespec time = {.tv_nsec = SHORT_NS};
	while (!end) {
		uint64_t start = victim_now();
		long result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, NULL, 0);
		expect_timeout(me, start, result == -1 && errno == ETIMEDOUT);
	}
}

static struct blocker blockers[] = {
	{.name = "read", .wait = wait_read, .wake = wake_pipe},
	{.name = "write", .wait = wait_write, .wake = wake_writer},
	{.name = "poll", .wait = wait_poll, .wake = wake_pipe},
	{.name = "poll-timeout", .wait = wait_poll_timeout, .wake = wake_pipe},
	{.name = "ppoll", .wait = wait_ppoll, .wake = wake_pipe},
	{.name = "select", .wait = wait_select, .wake = wake_pipe},
	{.name = "pselect", .wait = wait_pselect, .wake = wake_pipe},
	{.name = "pause", .wait = wait_pause, .wake = wake_signal},
	{.name = "sigsuspend", .wait = wait_sigsuspend, .wake = wake_signal},
	{.name = "sigtimedwait", .wait = wait_sigtimedwait, .wake = wake_waited},
	{.name = "futex", .wait = wait_futex, .wake = wake_futex},
	{.name = "futex_waitv", .wait = wait_futex_vector, .wake = wake_futex_vector},
	{.name = "mutex", .wait = wait_mutex, .wake = wake_mutex},
	{.name = "condition", .wait = wait_condition, .wake = wake_condition},
	{.name = "flock", .wait = wait_flock, .wake = wake_flock},
	{.name = "setlkw", .wait = wait_posix_lock, .wake = wake_nothing},
	{.name = "open-fifo", .wait = wait_fifo, .wake = wake_fifo},
	{.name = "socket-read", .wait = wait_read, .wake = wake_pipe, .at_socket = true},
	{.name = "socket-readv", .wait = wait_readv, .wake = wake_pipe, .at_socket = true},
	{.name = "recv", .wait = wait_recv, .wake = wake_pipe, .at_socket = true},
	{.name = "recvmmsg", .wait = wait_recvmmsg, .wake = wake_pipe, .at_socket = true},
	{.name = "socket-splice", .wait = wait_splice, .wake = wake_pipe, .at_socket = true},
	{.name = "socket-write", .wait = wait_socket_write, .wake = wake_sender, .at_socket = true},
	{.name = "send", .wait = wait_send, .wake = wake_sender, .at_socket = true},
	{.name = "sendmsg", .wait = wait_sendmsg, .wake = wake_sender, .at_socket = true},
	{.name = "accept", .wait = wait_accept, .wake = wake_accept},
	{.name = "nanosleep", .wait = repeat_nanosleep, .wake = wake_nothing},
	{.name = "clock_nanosleep", .wait = repeat_clock_nanosleep, .wake = wake_nothing},
	{.name = "absolute-sleep", .wait = repeat_absolute_sleep, .wake = wake_nothing},
	{.name = "short-poll", .wait = repeat_poll, .wake = wake_nothing},
	{.name = "short-futex", .wait = repeat_futex, .wake = wake_nothing},
};

static void *block(void *argument)
{
	struct blocker *me = argument;
	me->tid = victim_tid();
	me->wait(me);
	me->done = true;
	return NULL;
}

static bool exists(const char *suffix)
{
	return access(victim_path(suffix), F_OK) == 0;
}

/* Leaves a process behind that is nobody's child here and holds the POSIX lock until the test is over. */
static void start_lock_holder(void)
{
	int fd = MUST(open(victim_path("posix-lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
	pid_t child = MUST(fork());
	if (child == 0) {
		if (fork() != 0)
			_exit(0);
		setsid(); /* or the pid of the killed program stays taken, as the number of this one's session */
		struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
		MUST(fcntl(fd, F_SETLK, &range));
		victim_write("locked", "");
		for (uint64_t start = victim_now(); !victim_asked() && exists("locked");)
			if (victim_now() - start > HOLDER_SECONDS * 1000000000ull)
				break;
			else
				victim_rest();
		_exit(0);
	}
	waitpid(child, NULL, 0);
	close(fd);
	while (!exists("locked"))
		victim_rest();
}

static void prepare(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	MUST(sigaction(SIGUSR1, &action, NULL));
	start_lock_holder();
	MUST(mkfifo(victim_path("fifo"), 0600));
	flock_held = MUST(open(victim_path("flock"), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
	flock_waiting = MUST(open(victim_path("flock"), O_RDWR | O_CLOEXEC));
	MUST(flock(flock_held, LOCK_EX));
	pthread_mutex_lock(&mutex);
}

/* The ends of a pipe of which nobody else knows, or of a connection. */
static int *make_ends(bool at_socket)
{
	int *ends = malloc(2 * sizeof(int));
	if (ends == NULL)
		victim_die("malloc");
	if (at_socket) {
		MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
		be_patient(ends[0]);
	} else {
		MUST(pipe2(ends, O_CLOEXEC));
	}
	return ends;
}

/* Whether a thread sleeps in a system call, seen from outside of it. */
static bool sleeps(pid_t tid)
{
	char path[64], text[256] = "";
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t count = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	close(fd);
	const char *name_end = count > 0 ? strrchr(text, ')') : NULL;
	return name_end != NULL && name_end[2] == 'S';
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	prepare();
	for (size_t index = 0; index < ARRAY_LENGTH(blockers); index++) {
		struct blocker *blocker = &blockers[index];
		blocker->pipe = make_ends(blocker->at_socket);
		if (pthread_create(&blocker->handle, NULL, block, blocker) != 0)
			victim_die("pthread_create");
		while (blocker->tid == 0 || !sleeps(blocker->tid))
			victim_rest();
	}
	victim_ready();
	while (!victim_asked())
		victim_rest();
	for (size_t index = 0; index < ARRAY_LENGTH(blockers); index++)
		EXPECT(!blockers[index].done || blockers[index].wake == wake_nothing, "%s ended too early",
		       blockers[index].name);
	woken = end = true;
	for (size_t index = 0; index < ARRAY_LENGTH(blockers); index++)
		blockers[index].wake(&blockers[index]);
	for (size_t index = 0; index < ARRAY_LENGTH(blockers); index++) {
		uint64_t deadline = victim_now() + 50000000000ull;
		while (!blockers[index].done && victim_now() < deadline)
			victim_rest();
		EXPECT(blockers[index].done, "%s does not return", blockers[index].name);
	}
	return victim_end();
}
