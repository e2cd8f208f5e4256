/*
 * Watch lists of inotify, with numbers in which there are holes; and descriptors of processes: of the victim itself, and of
 * one that has ended.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FIRST, REMOVED, FILE_WATCH, ONCE, WATCHES };

static int list, empty_list, numbers[WATCHES];
static int myself, ended;

static void create(const char *directory, const char *name)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	close(MUST(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600)));
}

static void drain(void)
{
	char buffer[4096];
	while (read(list, buffer, sizeof(buffer)) > 0)
		;
}

static void make_watches(void)
{
	list = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
	empty_list = MUST(inotify_init1(0));
	MUST(mkdir(victim_path("watched dir"), 0755));
	MUST(mkdir(victim_path("removed"), 0755));
	create(victim_path("watched dir"), "file");
	numbers[FIRST] = MUST(inotify_add_watch(list, victim_path("watched dir"), IN_CREATE | IN_DELETE | IN_EXCL_UNLINK));
	numbers[REMOVED] = MUST(inotify_add_watch(list, victim_path("removed"), IN_CREATE));
	char path[4096];
	snprintf(path, sizeof(path), "%s/file", victim_path("watched dir"));
	numbers[FILE_WATCH] = MUST(inotify_add_watch(list, path, IN_ATTRIB | IN_MODIFY));
	MUST(inotify_rm_watch(list, numbers[REMOVED]));
	numbers[ONCE] = MUST(inotify_add_watch(list, victim_path("removed"), IN_CREATE | IN_ONESHOT));
	drain();
}

static void make_processes(void)
{
	myself = MUST((int)syscall(SYS_pidfd_open, getpid(), 0));
	pid_t child = MUST(fork());
	if (child == 0)
		_exit(0);
	ended = MUST((int)syscall(SYS_pidfd_open, child, O_NONBLOCK));
	MUST(waitpid(child, NULL, 0));
}

static void expect(int watch, uint32_t mask, const char *name)
{
	char buffer[4096] __attribute__((aligned(8)));
	const struct inotify_event *event = (const struct inotify_event *)buffer;
	ssize_t count = read(list, buffer, sizeof(struct inotify_event) + 16);
	EXPECT(count > 0, "there is no event %x of watch %d: %s", mask, numbers[watch], strerror(errno));
	if (count > 0) {
		EXPECT(event->wd == numbers[watch] && event->mask == mask, "the event is %x of watch %d, not %x of %d",
		       event->mask, event->wd, mask, numbers[watch]);
		EXPECT(event->len == 0 ? *name == '\0' : strcmp(event->name, name) == 0, "the event is not of %s", name);
	}
}

static void check_watches(void)
{
	char buffer[4096], path[4096];
	EXPECT(read(list, buffer, sizeof(buffer)) == -1 && errno == EAGAIN, "there are events already");
	create(victim_path("watched dir"), "new");
	expect(FIRST, IN_CREATE, "new");
	snprintf(path, sizeof(path), "%s/file", victim_path("watched dir"));
	EXPECT(chmod(path, 0644) == 0, "chmod");
	expect(FILE_WATCH, IN_ATTRIB, "");
	create(victim_path("removed"), "one");
	expect(ONCE, IN_CREATE, "one");
	expect(ONCE, IN_IGNORED, "");
	create(victim_path("removed"), "two");
	EXPECT(read(list, buffer, sizeof(buffer)) == -1 && errno == EAGAIN, "a watch reported twice");
	int next = inotify_add_watch(list, victim_path("removed"), IN_CREATE);
	EXPECT(next == numbers[ONCE] + 1, "the next watch has number %d", next);
	EXPECT(fcntl(list, F_GETFL) == O_NONBLOCK && fcntl(list, F_GETFD) == FD_CLOEXEC, "flags changed");
	EXPECT(fcntl(empty_list, F_GETFL) == 0 && inotify_add_watch(empty_list, path, IN_OPEN) == 1, "the empty list is not");
}

static void check_processes(void)
{
	struct pollfd polled[] = {{.fd = myself, .events = POLLIN}, {.fd = ended, .events = POLLIN}};
	EXPECT(poll(polled, 2, 0) == 1 && polled[0].revents == 0, "poll takes the victim for dead, or the dead for alive");
	EXPECT(syscall(SYS_pidfd_send_signal, myself, 0, NULL, 0) == 0, "there is no signal to the victim");
	EXPECT(syscall(SYS_pidfd_send_signal, ended, 0, NULL, 0) == -1 && errno == ESRCH, "there is one to the dead");
	int copy = (int)syscall(SYS_pidfd_getfd, myself, list, 0);
	struct stat mine, theirs;
	EXPECT(copy >= 0 && fstat(list, &mine) == 0 && fstat(copy, &theirs) == 0 && mine.st_ino == theirs.st_ino,
	       "the descriptor is of another process");
	EXPECT(fcntl(ended, F_GETFL) & O_NONBLOCK, "O_NONBLOCK is gone");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make_watches();
	make_processes();
	victim_ready();
	while (!victim_asked())
		victim_rest();
	check_watches();
	check_processes();
	return victim_end();
}
