/*
 * Connections of TCP with both ends inside the program: with data that waits on both sides, one direction closed, without
 * the listener they came from, over IPv4 and IPv6; and two threads that play through one.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CLIENT, ACCEPTED, BYTES = 60000, LARGE_BYTES = 1 << 20 };

static int listener, plain[2], half[2], six[2], played[2];
static struct sockaddr_storage plain_names[2];
static volatile bool end;

static unsigned char byte_at(size_t offset)
{
	return (unsigned char)(offset * 17 + 9);
}

static void put(int fd, size_t length)
{
	static unsigned char content[BYTES];
	for (size_t at = 0; at < length; at++)
		content[at] = byte_at(at);
	if (send(fd, content, length, MSG_NOSIGNAL) != (ssize_t)length)
		victim_die("send");
}

static bool holds(int fd, size_t length)
{
	static unsigned char content[BYTES];
	size_t found = 0;
	for (ssize_t count; found < length && (count = recv(fd, content + found, length - found, 0)) > 0;)
		found += (size_t)count;
	for (size_t at = 0; at < found; at++)
		if (content[at] != byte_at(at))
			return false;
	return found == length;
}

static int new_listener(int family)
{
	int fd = MUST(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} where = {.any.sa_family = (sa_family_t)family};
	if (family == AF_INET)
		where.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		where.v6.sin6_addr = in6addr_loopback;
	MUST(bind(fd, &where.any, family == AF_INET ? sizeof(where.v4) : sizeof(where.v6)));
	MUST(listen(fd, 5));
	return fd;
}

static void connect_to(int fd, int ends[2])
{
	struct sockaddr_storage where;
	socklen_t length = sizeof(where);
	MUST(getsockname(fd, (struct sockaddr *)&where, &length));
	ends[CLIENT] = MUST(socket(where.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(connect(ends[CLIENT], (struct sockaddr *)&where, length));
	ends[ACCEPTED] = MUST(accept(fd, NULL, NULL));
}

static struct sockaddr_storage name(int fd, bool other_end)
{
	struct sockaddr_storage where = {0};
	socklen_t length = sizeof(where);
	EXPECT((other_end ? getpeername : getsockname)(fd, (struct sockaddr *)&where, &length) == 0, "a socket has no name");
	return where;
}

static void await_input(int fd, size_t length)
{
	static unsigned char content[BYTES];
	while (recv(fd, content, length, MSG_PEEK) != (ssize_t)length)
		victim_rest();
}

static void make(void)
{
	listener = new_listener(AF_INET);
	connect_to(listener, plain);
	MUST(setsockopt(plain[ACCEPTED], IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)));
	put(plain[CLIENT], BYTES);
	put(plain[ACCEPTED], 100);
	for (int side = 0; side < 2; side++)
		plain_names[side] = name(plain[side], false);
	int gone = new_listener(AF_INET);
	connect_to(gone, half);
	close(gone);
	put(half[CLIENT], 30);
	put(half[ACCEPTED], 40);
	MUST(shutdown(half[CLIENT], SHUT_WR));
	int gone6 = new_listener(AF_INET6);
	connect_to(gone6, six);
	close(gone6);
	put(six[CLIENT], 7);
	connect_to(listener, played);
	await_input(plain[ACCEPTED], BYTES);
	await_input(half[ACCEPTED], 30);
	await_input(six[ACCEPTED], 7);
}

static void *play(void *argument)
{
	uint64_t number;
	while (!end)
		EXPECT(recv(played[ACCEPTED], &number, 8, MSG_WAITALL) == 8 && send(played[ACCEPTED], &number, 8, MSG_NOSIGNAL) == 8,
		       "the play stops");
	return argument;
}

static void *drain(void *argument)
{
	static unsigned char content[BYTES];
	size_t found = 0;
	for (ssize_t count; found < LARGE_BYTES && (count = recv(plain[ACCEPTED], content, sizeof(content), 0)) > 0;)
		found += (size_t)count;
	EXPECT(found == LARGE_BYTES, "%zu bytes arrived", found);
	return argument;
}

static void check_flow(void)
{
	static unsigned char content[LARGE_BYTES];
	pthread_t drainer;
	if (pthread_create(&drainer, NULL, drain, NULL) != 0)
		victim_die("pthread_create");
	size_t sent = 0;
	for (ssize_t count; sent < sizeof(content) &&
			    (count = send(plain[CLIENT], content + sent, sizeof(content) - sent, MSG_NOSIGNAL)) > 0;)
		sent += (size_t)count;
	EXPECT(sent == sizeof(content) && pthread_join(drainer, NULL) == 0, "only %zu bytes could be sent", sent);
}

static void check(void)
{
	char byte;
	int value = 0;
	socklen_t length = sizeof(value);
	EXPECT(holds(plain[ACCEPTED], BYTES) && holds(plain[CLIENT], 100), "what waited in the connection changed");
	for (int side = 0; side < 2; side++) {
		struct sockaddr_storage mine = name(plain[side], false), other = name(plain[!side], true);
		EXPECT(memcmp(&mine, &plain_names[side], sizeof(mine)) == 0 && memcmp(&mine, &other, sizeof(mine)) == 0,
		       "side %d has another name", side);
	}
	EXPECT(getsockopt(plain[ACCEPTED], IPPROTO_TCP, TCP_NODELAY, &value, &length) == 0 && value == 1, "TCP_NODELAY is gone");
	check_flow();
	EXPECT(holds(half[ACCEPTED], 30) && recv(half[ACCEPTED], &byte, 1, 0) == 0, "the half-closed connection does not end");
	EXPECT(holds(half[CLIENT], 40) && send(half[CLIENT], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE,
	       "its closed direction is open");
	EXPECT(send(half[ACCEPTED], "y", 1, MSG_NOSIGNAL) == 1 && recv(half[CLIENT], &byte, 1, 0) == 1 && byte == 'y',
	       "its open direction is closed");
	EXPECT(close(half[ACCEPTED]) == 0 && recv(half[CLIENT], &byte, 1, 0) == 0, "the close of the other end is not seen");
	EXPECT(holds(six[ACCEPTED], 7) && send(six[ACCEPTED], "z", 1, MSG_NOSIGNAL) == 1 && recv(six[CLIENT], &byte, 1, 0) == 1,
	       "the IPv6 connection is dead");
	int ends[2];
	connect_to(listener, ends);
	EXPECT(send(ends[CLIENT], "n", 1, MSG_NOSIGNAL) == 1 && recv(ends[ACCEPTED], &byte, 1, 0) == 1, "a new one is dead");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make();
	pthread_t player;
	if (pthread_create(&player, NULL, play, NULL) != 0)
		victim_die("pthread_create");
	uint64_t number = 0, answer = 0;
	victim_ready();
	while (!victim_asked()) {
		number++;
		EXPECT(send(played[CLIENT], &number, 8, MSG_NOSIGNAL) == 8 && recv(played[CLIENT], &answer, 8, MSG_WAITALL) == 8 &&
			       answer == number,
		       "the answer to %llu is %llu", (unsigned long long)number, (unsigned long long)answer);
		victim_rest();
	}
	end = true;
	EXPECT(send(played[CLIENT], &number, 8, MSG_NOSIGNAL) == 8 && pthread_join(player, NULL) == 0,
	       "the other thread does not end");
	check();
	return victim_end();
}
