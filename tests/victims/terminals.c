/*
 * Pseudo-terminals with both ends inside the program: settings, window size, a slave that was never opened and one that is
 * closed again, packet mode, and a thread that echoes through one.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum { ROWS = 33, COLUMNS = 99 };

static int master, slave, slave_copy, raw_master, raw_slave, unopened, hung;
static char name[64];
static volatile bool end;

static int open_master(void)
{
	int fd = MUST(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
	MUST(grantpt(fd));
	return fd;
}

static int open_slave(int fd)
{
	MUST(unlockpt(fd));
	return MUST(open(ptsname(fd), O_RDWR | O_NOCTTY));
}

static void make(void)
{
	struct termios settings;
	struct winsize window = {.ws_row = ROWS, .ws_col = COLUMNS};
	master = open_master();
	slave = open_slave(master);
	snprintf(name, sizeof(name), "%s", ptsname(master));
	slave_copy = MUST(dup(slave));
	MUST(tcgetattr(slave, &settings));
	settings.c_cc[VEOF] = 5;
	settings.c_iflag |= IUTF8;
	MUST(tcsetattr(slave, TCSANOW, &settings));
	MUST(ioctl(master, TIOCSWINSZ, &window));
	MUST(ioctl(master, TIOCPKT, &(int){1}));
	MUST(fcntl(master, F_SETFL, O_NONBLOCK));
	raw_master = open_master();
	raw_slave = open_slave(raw_master);
	MUST(tcgetattr(raw_slave, &settings));
	cfmakeraw(&settings);
	MUST(tcsetattr(raw_slave, TCSANOW, &settings));
	unopened = open_master();
	hung = open_master();
	close(open_slave(hung));
}

static void *echo(void *argument)
{
	char byte;
	while (!end)
		EXPECT(read(raw_slave, &byte, 1) == 1 && write(raw_slave, &byte, 1) == 1, "the echo stops");
	return argument;
}

static void check(void)
{
	struct termios settings;
	struct winsize window = {0};
	char text[64] = "";
	EXPECT(strcmp(ptsname(master), name) == 0 && strcmp(ttyname(slave), name) == 0, "the terminal is %s", ptsname(master));
	EXPECT(tcgetattr(slave, &settings) == 0 && settings.c_cc[VEOF] == 5 && settings.c_iflag & IUTF8 &&
		       settings.c_lflag & ICANON,
	       "settings changed");
	EXPECT(tcgetattr(raw_slave, &settings) == 0 && !(settings.c_lflag & (ICANON | ECHO)), "the raw terminal is not raw");
	EXPECT(ioctl(slave, TIOCGWINSZ, &window) == 0 && window.ws_row == ROWS && window.ws_col == COLUMNS,
	       "the window has %d rows", window.ws_row);
	EXPECT(read(master, text, sizeof(text)) == -1 && errno == EAGAIN, "there is output already");
	EXPECT(write(master, "line\n", 5) == 5 && read(slave_copy, text, sizeof(text)) == 5 && strncmp(text, "line\n", 5) == 0,
	       "no line arrives");
	EXPECT(read(master, text, sizeof(text)) >= 1 && text[0] == TIOCPKT_DATA, "packet mode is gone");
	struct pollfd polled[] = {{.fd = unopened, .events = POLLIN}, {.fd = hung, .events = POLLIN}};
	EXPECT(poll(polled, 2, 0) == 1 && polled[0].revents == 0 && polled[1].revents & POLLHUP,
	       "hang-ups changed: %x and %x", polled[0].revents, polled[1].revents);
	EXPECT(open(ptsname(unopened), O_RDWR | O_NOCTTY) == -1 && errno == EIO, "the locked terminal is not locked");
	int late = open_slave(unopened);
	EXPECT(write(late, "x", 1) == 1 && read(unopened, text, 1) == 1, "the late slave is dead");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make();
	pthread_t echoer;
	if (pthread_create(&echoer, NULL, echo, NULL) != 0)
		victim_die("pthread_create");
	victim_ready();
	char byte = 'a', answer = 0;
	while (!victim_asked()) {
		EXPECT(write(raw_master, &byte, 1) == 1 && read(raw_master, &answer, 1) == 1 && answer == byte, "no echo");
		byte = byte == 'z' ? 'a' : (char)(byte + 1);
		victim_rest();
	}
	end = true;
	EXPECT(write(raw_master, "q", 1) == 1 && read(raw_master, &answer, 1) == 1 && pthread_join(echoer, NULL) == 0,
	       "the other thread does not end");
	check();
	return victim_end();
}
