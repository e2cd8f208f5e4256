/*
 * What an editor holds: a terminal of somebody else's, which is standard input, output and error, controls the session and has
 * this process in its foreground; settings of its own, and a handler for changes of the window.
 *
 * It answers each byte that is typed with the next one, and what it is asked for by '?' with what it sees of the terminal.
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
#include <termios.h>
#include <unistd.h>

static volatile sig_atomic_t redrawn;
static int own;

static void redraw(int signal)
{
	(void)signal;
	redrawn++;
}

static void sit_down(void)
{
	struct termios settings;
	struct sigaction action = {.sa_handler = redraw, .sa_flags = SA_RESTART};
	MUST(tcgetattr(0, &settings));
	cfmakeraw(&settings);
	settings.c_cc[VEOF] = 5;
	MUST(tcsetattr(0, TCSANOW, &settings));
	MUST(sigaction(SIGWINCH, &action, NULL));
	own = MUST(open("/dev/tty", O_RDWR | O_CLOEXEC));
}

static void check(void)
{
	struct termios settings;
	EXPECT(tcgetattr(0, &settings) == 0 && settings.c_cc[VEOF] == 5 && !(settings.c_lflag & (ICANON | ECHO | ISIG)),
	       "settings changed");
	for (int fd = 0; fd < 3; fd++)
		EXPECT(isatty(fd), "descriptor %d is no terminal", fd);
	EXPECT(tcgetsid(0) == getsid(0), "it controls session %d, and ours is %d", tcgetsid(0), getsid(0));
	EXPECT(tcgetpgrp(0) == getpgrp(), "group %d is in the foreground", tcgetpgrp(0));
	EXPECT(tcgetpgrp(own) == getpgrp(), "/dev/tty is another terminal");
	EXPECT(getsid(0) == getpid(), "the session is led by another");
}

static void answer(void)
{
	char byte, text[64];
	struct winsize window = {0};
	if (read(0, &byte, 1) != 1)
		victim_die("the terminal");
	int length = snprintf(text, sizeof(text), "<%c>", byte + 1);
	if (byte == '?' && ioctl(0, TIOCGWINSZ, &window) == 0)
		length = snprintf(text, sizeof(text), "<%d rows, %d columns, %s>", window.ws_row, window.ws_col,
				  redrawn ? "redrawn" : "not redrawn");
	EXPECT(write(1, text, (size_t)length) == length, "the answer is not taken");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	sit_down();
	victim_ready();
	while (!victim_asked()) {
		struct pollfd typed = {.fd = 0, .events = POLLIN};
		if (poll(&typed, 1, 20) == 1)
			answer();
	}
	check();
	return victim_end();
}
