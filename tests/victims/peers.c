/*
 * Connections of TCP to another process, which must be there at ADDRESS and PORT and knows each by its first byte: one that
 * both play through, one with input that waits, one whose output nobody takes, and two that are half-closed, by either end.
 * If PREFIX.over is there, all of them must be over, after what had been received.
 *
 *   peers PREFIX ADDRESS PORT
 */
#define _GNU_SOURCE
#include "victim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { WAITING = 60000, HALF = 30, ENDED = 40, REPLY = 50, MORE = 1000, IDLE_SECONDS = 321 };

static int played, waiting, filled, half, ended;
static struct sockaddr_storage names[5];
static size_t filled_bytes;

static unsigned char byte_at(size_t offset)
{
	return (unsigned char)(offset * 17 + offset / 251);
}

static int connect_to(const char *address, const char *port, char tag)
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} where = {0};
	bool six = strchr(address, ':') != NULL;
	where.any.sa_family = six ? AF_INET6 : AF_INET;
	if (inet_pton(where.any.sa_family, address, six ? (void *)&where.v6.sin6_addr : (void *)&where.v4.sin_addr) != 1)
		victim_die("address");
	where.v4.sin_port = htons((uint16_t)atoi(port)); /* at the same place in both */
	int fd = MUST(socket(where.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(connect(fd, &where.any, six ? sizeof(where.v6) : sizeof(where.v4)));
	MUST(send(fd, &tag, 1, MSG_NOSIGNAL));
	return fd;
}

static struct sockaddr_storage name(int fd)
{
	struct sockaddr_storage where = {0};
	socklen_t length = sizeof(where);
	EXPECT(getsockname(fd, (struct sockaddr *)&where, &length) == 0, "a socket has no name");
	return where;
}

static size_t put(int fd, size_t from, size_t length, int flags)
{
	static unsigned char content[1 << 16];
	size_t end = from + length;
	while (from < end) {
		size_t some = end - from < sizeof(content) ? end - from : sizeof(content);
		for (size_t at = 0; at < some; at++)
			content[at] = byte_at(from + at);
		ssize_t count = send(fd, content, some, flags | MSG_NOSIGNAL);
		if (count <= 0)
			break;
		from += (size_t)count;
	}
	return from;
}

/* Reads all that comes until the end or an error, which is in *error; the number of bytes, all as they must be. */
static size_t take(int fd, int *error)
{
	static unsigned char content[1 << 16];
	size_t found = 0;
	ssize_t count;
	while ((count = recv(fd, content, sizeof(content), 0)) > 0)
		for (ssize_t at = 0; at < count; at++, found++)
			EXPECT(content[at] == byte_at(found), "byte %zu is another one", found);
	*error = count == 0 ? 0 : errno;
	return found;
}

static void await_input(int fd, size_t length, bool end)
{
	struct pollfd one = {.fd = fd, .events = POLLRDHUP};
	static unsigned char content[WAITING];
	while (recv(fd, content, length, MSG_PEEK) != (ssize_t)length || (end && poll(&one, 1, 1000) != 1))
		victim_rest();
}

static void make(const char *address, const char *port)
{
	played = connect_to(address, port, 'p');
	MUST(setsockopt(played, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)));
	MUST(setsockopt(played, IPPROTO_TCP, TCP_KEEPIDLE, &(int){IDLE_SECONDS}, sizeof(int)));
	waiting = connect_to(address, port, 'w');
	filled = connect_to(address, port, 'f');
	half = connect_to(address, port, 'h');
	ended = connect_to(address, port, 'e');
	put(half, 0, HALF, 0);
	MUST(shutdown(half, SHUT_WR));
	filled_bytes = put(filled, 0, (size_t)1 << 40, MSG_DONTWAIT);
	await_input(waiting, WAITING, false);
	await_input(ended, ENDED, true);
	int fds[] = {played, waiting, filled, half, ended};
	for (size_t index = 0; index < ARRAY_LENGTH(fds); index++)
		names[index] = name(fds[index]);
}

static void check_going_on(void)
{
	int error, value = 0;
	socklen_t length = sizeof(value);
	EXPECT(getsockopt(played, IPPROTO_TCP, TCP_NODELAY, &value, &length) == 0 && value == 1, "TCP_NODELAY is gone");
	EXPECT(getsockopt(played, IPPROTO_TCP, TCP_KEEPIDLE, &value, &length) == 0 && value == IDLE_SECONDS,
	       "TCP_KEEPIDLE is %d", value);
	int fds[] = {played, waiting, filled, half, ended};
	for (size_t index = 0; index < ARRAY_LENGTH(fds); index++) {
		struct sockaddr_storage now = name(fds[index]);
		EXPECT(memcmp(&now, &names[index], sizeof(now)) == 0, "connection %zu has another name", index);
	}
	size_t found = take(waiting, &error);
	EXPECT(found >= WAITING && !error, "%zu bytes waited: %s", found, strerror(error));
	uint64_t count = found;
	EXPECT(send(waiting, &count, sizeof(count), MSG_NOSIGNAL) == sizeof(count), "nothing can be answered");
	EXPECT(take(ended, &error) == ENDED && !error, "the connection that the peer has ended: %s", strerror(error));
	EXPECT(put(ended, 0, REPLY, 0) == REPLY && close(ended) == 0, "nothing goes the other way");
	EXPECT(send(half, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "the closed direction is open");
	EXPECT(take(half, &error) == HALF && !error, "the open direction is closed: %s", strerror(error));
	EXPECT(put(filled, filled_bytes, MORE, 0) == filled_bytes + MORE && shutdown(filled, SHUT_WR) == 0,
	       "nothing can be sent behind what was on its way");
	EXPECT(take(filled, &error) == 0 && !error, "the peer has not taken all: %s", strerror(error));
	close(played);
}

/* Says a number and waits for it to come back; 0, or what went wrong. */
static int play(void)
{
	static uint64_t number;
	uint64_t answer = 0;
	number++;
	ssize_t count = send(played, &number, 8, MSG_NOSIGNAL);
	if (count == 8)
		count = recv(played, &answer, 8, MSG_WAITALL);
	if (count == -1)
		return errno;
	EXPECT(count == 8 && answer == number, "the answer to %llu is %llu", (unsigned long long)number, (unsigned long long)answer);
	return 0;
}

static void check_over(int play_error)
{
	int error;
	EXPECT(play_error == ECONNRESET || play_error == EPIPE, "the game goes on: %s", strerror(play_error));
	EXPECT(take(waiting, &error) == WAITING && error == ECONNRESET, "what waited: %s", strerror(error));
	EXPECT(take(ended, &error) == ENDED && error == ECONNRESET, "what waited at the end: %s", strerror(error));
	EXPECT(take(half, &error) == 0 && error == ECONNRESET, "the half-closed one: %s", strerror(error));
	EXPECT(send(filled, "x", 1, MSG_NOSIGNAL) == -1 && (errno == ECONNRESET || errno == EPIPE), "something can be sent");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	if (argc != 4)
		victim_die("usage");
	make(argv[2], argv[3]);
	int play_error = 0;
	victim_ready();
	while (!victim_asked()) {
		if (!play_error)
			play_error = play();
		victim_rest();
	}
	if (access(victim_path("over"), F_OK) == 0)
		check_over(play_error ? play_error : play());
	else if (play_error)
		victim_fail("the game stops: %s", strerror(play_error));
	else
		check_going_on();
	return victim_end();
}
