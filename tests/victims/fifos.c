/*
 * Named pipes: with both ends, with a writer only and data that nobody reads yet, with a reader that has never met a writer
 * and one whose writer is gone, in packet mode, and deleted.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BYTES = 70000, LARGE_BYTES = 256 << 10, FLAGS = O_ACCMODE | O_DIRECT | O_NONBLOCK };

static int both, reader, writer, orphan, waiting, hung, packet_reader, packet_writer, deleted;
static int play_reader, play_writer;
static volatile uint64_t rounds;
static volatile bool end;

static unsigned char byte_at(size_t offset)
{
	return (unsigned char)(offset * 13 + 1);
}

static bool put(int fd, size_t length)
{
	static unsigned char content[BYTES];
	for (size_t at = 0; at < length; at++)
		content[at] = byte_at(at);
	return write(fd, content, length) == (ssize_t)length;
}

static bool holds(int fd, size_t length)
{
	static unsigned char content[BYTES];
	size_t found = 0;
	for (ssize_t count; found < length && (count = read(fd, content + found, length - found)) > 0;)
		found += (size_t)count;
	for (size_t at = 0; at < found; at++)
		if (content[at] != byte_at(at))
			return false;
	return found == length;
}

static int fifo(const char *suffix, int flags)
{
	if (mkfifo(victim_path(suffix), 0640) != 0 && errno != EEXIST)
		victim_die("mkfifo");
	return MUST(open(victim_path(suffix), flags));
}

static void make(void)
{
	both = fifo("both", O_RDWR | O_CLOEXEC);
	reader = fifo("both", O_RDONLY | O_NONBLOCK);
	MUST(fcntl(both, F_SETPIPE_SZ, LARGE_BYTES));
	if (!put(both, BYTES))
		victim_die("write");
	int first = fifo("orphan", O_RDONLY | O_NONBLOCK);
	orphan = fifo("orphan", O_WRONLY);
	if (!put(orphan, 100))
		victim_die("write");
	close(first);
	waiting = fifo("waiting", O_RDONLY | O_NONBLOCK);
	hung = fifo("hung", O_RDONLY | O_NONBLOCK);
	writer = fifo("hung", O_WRONLY);
	if (!put(writer, 50))
		victim_die("write");
	close(writer);
	packet_reader = fifo("packets", O_RDONLY | O_NONBLOCK);
	packet_writer = fifo("packets", O_WRONLY);
	MUST(fcntl(packet_writer, F_SETFL, O_DIRECT | O_NONBLOCK));
	if (!put(packet_writer, 10) || !put(packet_writer, 4000) || !put(packet_writer, 1))
		victim_die("write");
	deleted = fifo("deleted", O_RDWR | O_NONBLOCK);
	if (!put(deleted, 300))
		victim_die("write");
	MUST(unlink(victim_path("deleted")));
	play_reader = fifo("play", O_RDWR);
	play_writer = fifo("play", O_WRONLY);
}

static void *play(void *argument)
{
	for (uint64_t expected = 1; !end; expected++) {
		uint64_t number = 0;
		EXPECT(read(play_reader, &number, sizeof(number)) == sizeof(number) && (number == expected || end),
		       "number %llu is %llu", (unsigned long long)expected, (unsigned long long)number);
		rounds = number;
	}
	return argument;
}

static short polled(int fd)
{
	struct pollfd one = {.fd = fd, .events = POLLIN};
	EXPECT(poll(&one, 1, 0) >= 0, "poll");
	return one.revents;
}

static void check_ends(void)
{
	char byte;
	EXPECT(holds(reader, BYTES), "what was in flight changed");
	EXPECT(read(reader, &byte, 1) == -1 && errno == EAGAIN, "the pipe does not wait for its writer");
	EXPECT(fcntl(both, F_GETPIPE_SZ) == LARGE_BYTES, "the pipe holds %d bytes", fcntl(both, F_GETPIPE_SZ));
	EXPECT((fcntl(both, F_GETFL) & FLAGS) == O_RDWR && fcntl(both, F_GETFD) == FD_CLOEXEC, "flags changed");
	EXPECT(polled(waiting) == 0, "the reader that never met a writer polls %x", polled(waiting));
	EXPECT(polled(hung) == (POLLIN | POLLHUP), "the reader whose writer is gone polls %x", polled(hung));
	EXPECT(holds(hung, 50) && read(hung, &byte, 1) == 0, "the pipe of the writer that is gone does not end");
	EXPECT(write(orphan, "x", 1) == -1 && errno == EPIPE, "there is a reader");
	int late = open(victim_path("orphan"), O_RDONLY | O_NONBLOCK);
	EXPECT(late >= 0 && holds(late, 100), "the late reader does not find the data");
	int met = open(victim_path("waiting"), O_WRONLY | O_NONBLOCK);
	EXPECT(met >= 0 && write(met, "y", 1) == 1 && read(waiting, &byte, 1) == 1 && byte == 'y', "nobody comes by name");
}

static void check_others(void)
{
	unsigned char content[8192];
	char expected[PATH_MAX], path[64], target[PATH_MAX] = "";
	struct stat now;
	EXPECT(read(packet_reader, content, sizeof(content)) == 10 && read(packet_reader, content, sizeof(content)) == 4000 &&
		       read(packet_reader, content, sizeof(content)) == 1,
	       "the packets changed");
	EXPECT((fcntl(packet_writer, F_GETFL) & FLAGS) == (O_WRONLY | O_DIRECT | O_NONBLOCK), "packet mode is gone");
	EXPECT(holds(deleted, 300), "the data in the deleted pipe changed");
	snprintf(expected, sizeof(expected), "%s (deleted)", victim_path("deleted"));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", deleted);
	EXPECT(readlink(path, target, sizeof(target) - 1) > 0 && strcmp(target, expected) == 0, "it is called %s", target);
	EXPECT(fstat(deleted, &now) == 0 && now.st_nlink == 0 && (now.st_mode & 0777) == 0640, "it is another");
	EXPECT(access(victim_path("deleted"), F_OK) == -1, "the deleted name is back");
	EXPECT(stat(victim_path("both"), &now) == 0 && S_ISFIFO(now.st_mode), "the named pipe is gone");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	make();
	pthread_t player;
	if (pthread_create(&player, NULL, play, NULL) != 0)
		victim_die("pthread_create");
	uint64_t number = 0;
	victim_ready();
	while (!victim_asked()) {
		number++;
		EXPECT(write(play_writer, &number, sizeof(number)) == sizeof(number), "write");
		EXPECT(victim_reaches(&rounds, number), "number %llu got lost", (unsigned long long)number);
		victim_rest();
	}
	end = true;
	EXPECT(write(play_writer, &number, sizeof(number)) == sizeof(number) && pthread_join(player, NULL) == 0,
	       "the other thread does not end");
	check_ends();
	check_others();
	return victim_end();
}
