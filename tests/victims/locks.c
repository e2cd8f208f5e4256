/*
 * Locks that belong to open file descriptions, and leases; those of the process are in files.c.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define SIGNAL (SIGRTMIN + 4)

static int first, second, leased, leased_for_writing;
static volatile sig_atomic_t broken_fd = -1;

static void on_break(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	broken_fd = info->si_fd;
}

static int lock(int fd, int command, short type, off_t start, off_t length)
{
	struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
	return fcntl(fd, command, &range);
}

static int file(const char *suffix, int flags)
{
	close(MUST(open(victim_path(suffix), O_RDWR | O_CREAT | O_CLOEXEC, 0600)));
	return MUST(open(victim_path(suffix), flags));
}

static void make(void)
{
	first = file("locked", O_RDWR);
	second = file("locked", O_RDWR);
	MUST(lock(first, F_OFD_SETLK, F_WRLCK, 0, 10));
	MUST(lock(first, F_OFD_SETLK, F_RDLCK, 20, 10));
	MUST(lock(second, F_OFD_SETLK, F_RDLCK, 25, 0));
	struct sigaction action = {.sa_sigaction = on_break, .sa_flags = SA_SIGINFO | SA_RESTART};
	MUST(sigaction(SIGNAL, &action, NULL));
	leased = file("leased", O_RDONLY);
	MUST(fcntl(leased, F_SETLEASE, F_RDLCK));
	MUST(fcntl(leased, F_SETSIG, SIGNAL));
	leased_for_writing = file("leased-for-writing", O_RDWR);
	MUST(fcntl(leased_for_writing, F_SETLEASE, F_WRLCK));
}

static void check_locks(void)
{
	EXPECT(lock(second, F_OFD_SETLK, F_RDLCK, 5, 1) == -1 && errno == EAGAIN, "the exclusive lock is gone");
	EXPECT(lock(second, F_OFD_SETLK, F_WRLCK, 20, 5) == -1 && errno == EAGAIN, "the shared lock is gone");
	EXPECT(lock(first, F_OFD_SETLK, F_WRLCK, 1000, 1) == -1 && errno == EAGAIN, "the other description has no lock");
	EXPECT(lock(first, F_SETLK, F_WRLCK, 0, 1) == -1 && errno == EAGAIN, "a lock of the process is possible beside it");
	EXPECT(lock(second, F_OFD_SETLK, F_WRLCK, 10, 10) == 0, "there is a lock too many");
	int copy = dup(first);
	EXPECT(close(first) == 0 && lock(second, F_OFD_SETLK, F_RDLCK, 5, 1) == -1, "the lock is not the description's");
	EXPECT(close(copy) == 0 && lock(second, F_OFD_SETLK, F_WRLCK, 0, 10) == 0, "the lock outlives its description");
}

static void check_leases(void)
{
	EXPECT(fcntl(leased, F_GETLEASE) == F_RDLCK, "the read lease is %d", fcntl(leased, F_GETLEASE));
	EXPECT(fcntl(leased_for_writing, F_GETLEASE) == F_WRLCK, "the write lease is gone");
	EXPECT(fcntl(leased, F_GETSIG) == SIGNAL && fcntl(leased, F_GETOWN) == getpid(), "nobody is told of a break");
	EXPECT(open(victim_path("leased"), O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "the lease breaks silently");
	uint64_t deadline = victim_now() + 50000000000ull;
	while (broken_fd == -1 && victim_now() < deadline)
		victim_rest();
	EXPECT(broken_fd == leased, "the signal is of descriptor %d", (int)broken_fd);
	EXPECT(fcntl(leased, F_SETLEASE, F_UNLCK) == 0, "the lease cannot be given up");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make();
	victim_ready();
	while (!victim_asked())
		victim_rest();
	check_locks();
	check_leases();
	return victim_end();
}
