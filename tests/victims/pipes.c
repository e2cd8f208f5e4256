/*
 * Pipes with both ends inside the process: data in flight, packets, sizes, ends that are closed, duplicates, flags; and
 * two threads that play ping-pong with numbers all the time.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

enum { IN_FLIGHT_BYTES = 70000, LARGE_BYTES = 256 << 10 };

static const size_t packet_bytes[] = {5, 100, 4000, 1};

static int full[2], packets[2], large[2], tail[2], broken[2], duplicate, ping[2], pong[2];
static volatile uint64_t rounds;
static volatile bool end;

static unsigned char byte_at(size_t index)
{
	return (unsigned char)(index * 131 + index / 4096 + 7);
}

static void put(int fd, size_t bytes)
{
	unsigned char content[IN_FLIGHT_BYTES];
	for (size_t index = 0; index < bytes; index++)
		content[index] = byte_at(index);
	if (write(fd, content, bytes) != (ssize_t)bytes)
		victim_die("write");
}

static bool holds(int fd, size_t bytes)
{
	unsigned char content[IN_FLIGHT_BYTES];
	size_t found = 0;
	while (found < bytes) {
		ssize_t count = read(fd, content + found, bytes - found);
		if (count <= 0)
			return false;
		found += (size_t)count;
	}
	for (size_t index = 0; index < bytes; index++)
		if (content[index] != byte_at(index))
			return false;
	return true;
}

static void make_pipes(void)
{
	MUST(pipe2(full, O_CLOEXEC));
	MUST(fcntl(full[1], F_SETPIPE_SZ, 2 * IN_FLIGHT_BYTES));
	put(full[1], IN_FLIGHT_BYTES);
	MUST(pipe2(packets, O_DIRECT | O_NONBLOCK));
	for (size_t index = 0; index < ARRAY_LENGTH(packet_bytes); index++)
		put(packets[1], packet_bytes[index]);
	MUST(pipe(large));
	MUST(fcntl(large[1], F_SETPIPE_SZ, LARGE_BYTES));
	MUST(pipe(tail));
	put(tail[1], 100);
	close(tail[1]);
	MUST(pipe(broken));
	close(broken[0]);
	duplicate = MUST(fcntl(full[0], F_DUPFD, 100));
	MUST(pipe(ping));
	MUST(pipe(pong));
}

static void *play(void *argument)
{
	uint64_t number;
	while (read(ping[0], &number, sizeof(number)) == sizeof(number) && !end) {
		number++;
		if (write(pong[1], &number, sizeof(number)) != sizeof(number))
			victim_fail("pong was not written");
	}
	return argument;
}

static void play_once(void)
{
	uint64_t number = rounds, answer = 0;
	EXPECT(write(ping[1], &number, sizeof(number)) == sizeof(number), "ping was not written: %s", strerror(errno));
	EXPECT(read(pong[0], &answer, sizeof(answer)) == sizeof(answer), "pong was not read: %s", strerror(errno));
	EXPECT(answer == number + 1, "the answer to %llu was %llu", (unsigned long long)number,
	       (unsigned long long)answer);
	rounds = answer;
}

static void check_packets(void)
{
	unsigned char content[8192];
	for (size_t index = 0; index < ARRAY_LENGTH(packet_bytes); index++) {
		ssize_t count = read(packets[0], content, sizeof(content));
		EXPECT(count == (ssize_t)packet_bytes[index], "packet %zu has %zd bytes", index, count);
		EXPECT(count > 0 && content[count - 1] == byte_at((size_t)count - 1), "packet %zu changed", index);
	}
	EXPECT(read(packets[0], content, 1) == -1 && errno == EAGAIN, "there is another packet");
	EXPECT(fcntl(packets[1], F_GETFL) == (O_WRONLY | O_DIRECT | O_NONBLOCK), "flags of the packet pipe changed");
}

static void check_flags(void)
{
	EXPECT(fcntl(full[0], F_GETFD) == FD_CLOEXEC && fcntl(full[1], F_GETFD) == FD_CLOEXEC, "close-on-exec is gone");
	EXPECT(fcntl(large[0], F_GETFD) == 0, "close-on-exec appeared");
	EXPECT(fcntl(full[0], F_GETFL) == O_RDONLY && fcntl(full[1], F_GETFL) == O_WRONLY, "flags of the full pipe changed");
	EXPECT(fcntl(large[1], F_GETPIPE_SZ) == LARGE_BYTES, "the large pipe has %d bytes", fcntl(large[1], F_GETPIPE_SZ));
	EXPECT(fcntl(full[0], F_SETFL, O_NONBLOCK) == 0 && fcntl(duplicate, F_GETFL) & O_NONBLOCK,
	       "a duplicate has become a description of its own");
	EXPECT(!(fcntl(full[1], F_GETFL) & O_NONBLOCK), "both ends have become one description");
}

static void check_ends(void)
{
	unsigned char byte;
	EXPECT(holds(tail[0], 100), "the data of the closed pipe changed");
	EXPECT(read(tail[0], &byte, 1) == 0, "the closed pipe does not end");
	EXPECT(write(broken[1], "x", 1) == -1 && errno == EPIPE, "a pipe without readers takes data");
	EXPECT(write(large[1], "x", 1) == 1 && read(large[0], &byte, 1) == 1 && byte == 'x', "the large pipe is not empty");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	make_pipes();
	pthread_t player;
	if (pthread_create(&player, NULL, play, NULL) != 0)
		victim_die("pthread_create");
	play_once();
	victim_ready();
	while (!victim_asked()) {
		for (int index = 0; index < 20; index++)
			play_once();
		victim_rest();
	}
	end = true;
	if (write(ping[1], (uint64_t[]){0}, 8) != 8 || pthread_join(player, NULL) != 0)
		victim_fail("the other thread does not end");
	EXPECT(holds(duplicate, IN_FLIGHT_BYTES), "the data in flight changed");
	check_flags();
	check_packets();
	check_ends();
	return victim_end();
}
