/*
 * What a terminal emulator and a shell hold: a pseudo-terminal whose master is here and whose slave controls the session of a
 * child, with one job in the foreground and one in the background.
 *
 * The leader waits for its jobs, as a shell does.  The job in the foreground answers each line that it reads; the one in the
 * background answers over pipes.  An interrupt character must reach the foreground alone.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { ROWS = 41, COLUMNS = 111, INTERRUPT = 3, PATIENCE_MS = 60000 };

struct told {
	pid_t leader, foreground, background;
};

static int master, ask[2], answer[2];
static struct told told;
static volatile sig_atomic_t interrupts;

static void count(int signal)
{
	(void)signal;
	interrupts++;
}

static void run_foreground(int slave)
{
	char line[64], text[128];
	struct winsize window;
	struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
	MUST(sigaction(SIGINT, &action, NULL));
	for (;;) {
		ssize_t bytes = read(slave, line, sizeof(line));
		if (bytes <= 0)
			_exit(1);
		MUST(ioctl(slave, TIOCGWINSZ, &window));
		int length = snprintf(text, sizeof(text), "%.*s:%d:%d:%d:%d:%d;", (int)bytes - 1, line, (int)interrupts,
				      tcgetpgrp(slave) == getpgrp(), tcgetsid(slave) == getppid(), window.ws_row, window.ws_col);
		MUST(write(slave, text, (size_t)length));
	}
}

/* A byte for each that is asked: 1 if the terminal controls this session, and another group is in its foreground. */
static void run_background(pid_t foreground)
{
	char byte;
	while (read(ask[0], &byte, 1) == 1) {
		int fd = open("/dev/tty", O_RDWR);
		byte = fd >= 0 && tcgetsid(fd) == getppid() && tcgetpgrp(fd) == foreground && getpgrp() == getpid();
		close(fd);
		MUST(write(answer[1], &byte, 1));
	}
	_exit(0);
}

static pid_t start_job(void)
{
	pid_t pid = MUST(fork());
	setpgid(pid, pid);
	return pid;
}

static void lead(int report)
{
	MUST(setsid());
	int slave = MUST(open(ptsname(master), O_RDWR)); /* which makes it control the session */
	close(master);
	struct termios settings;
	MUST(tcgetattr(slave, &settings));
	settings.c_lflag &= ~(tcflag_t)(ECHO | ECHOE | ECHOK);
	MUST(tcsetattr(slave, TCSANOW, &settings));
	struct told jobs = {.leader = getpid()};
	jobs.foreground = start_job();
	if (jobs.foreground == 0) {
		signal(SIGTTOU, SIG_IGN);
		MUST(tcsetpgrp(slave, getpid()));
		run_foreground(slave);
	}
	jobs.background = start_job();
	if (jobs.background == 0)
		run_background(jobs.foreground);
	while (tcgetpgrp(slave) != jobs.foreground)
		usleep(1000);
	MUST(write(report, &jobs, sizeof(jobs)));
	close(report);
	while (waitpid(-1, NULL, 0) > 0)
		;
	_exit(0);
}

static void make(void)
{
	struct winsize window = {.ws_row = ROWS, .ws_col = COLUMNS};
	int report[2];
	MUST(pipe(ask));
	MUST(pipe(answer));
	MUST(pipe(report));
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY));
	MUST(grantpt(master));
	MUST(unlockpt(master));
	MUST(ioctl(master, TIOCSWINSZ, &window));
	if (MUST(fork()) == 0)
		lead(report[1]);
	close(report[1]);
	if (read(report[0], &told, sizeof(told)) != sizeof(told))
		victim_die("the leader");
	close(report[0]);
}

/* Reads up to a semicolon. */
static void hear(char *text, size_t room)
{
	size_t length = 0;
	struct pollfd polled = {.fd = master, .events = POLLIN};
	while (length < room - 1 && poll(&polled, 1, PATIENCE_MS) == 1 && read(master, text + length, 1) == 1)
		if (text[length++] == ';')
			break;
	text[length] = '\0';
}

static void check(int interrupted)
{
	char text[128], wanted[128], byte = 0;
	snprintf(wanted, sizeof(wanted), "hello:%d:1:1:%d:%d;", interrupted, ROWS, COLUMNS);
	EXPECT(write(master, "hello\n", 6) == 6, "the terminal is dead");
	hear(text, sizeof(text));
	EXPECT(strcmp(text, wanted) == 0, "the foreground says %s, not %s", text, wanted);
	struct pollfd polled = {.fd = answer[0], .events = POLLIN};
	EXPECT(write(ask[1], &byte, 1) == 1 && poll(&polled, 1, PATIENCE_MS) == 1 && read(answer[0], &byte, 1) == 1 && byte == 1,
	       "the background has not the terminal that it had");
	EXPECT(kill(told.leader, 0) == 0 && getsid(told.background) == told.leader && getpgid(told.foreground) == told.foreground,
	       "a session or group changed");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make();
	check(0);
	victim_ready();
	while (!victim_asked())
		victim_rest();
	check(0);
	char interrupt = INTERRUPT;
	EXPECT(write(master, &interrupt, 1) == 1, "the terminal is dead");
	check(1);
	kill(told.foreground, SIGKILL);
	kill(told.background, SIGKILL);
	EXPECT(waitpid(told.leader, NULL, 0) == told.leader, "the leader is nobody's child");
	return victim_end();
}
