/*
 * Network sockets without a connection of TCP: listeners, one that does nothing yet, and UDP: bound, connected, with datagrams
 * that wait, over IPv4 and IPv6.  Only the loopback interface is used.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 7, IDLE_SECONDS = 321, ROOM = 123456, TOS = 0x10 };

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static int listener, listener6, fresh, receiver, named, stranger, connected, receiver6, sender6, closed_source;
static union address listener_at, listener6_at, receiver_at, named_at, receiver6_at, sender6_at, connected_at;

static int make(int family, int type)
{
	return MUST(socket(family, type | SOCK_CLOEXEC, 0));
}

static union address loopback(int family)
{
	union address where = {0};
	where.any.sa_family = (sa_family_t)family;
	if (family == AF_INET)
		where.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		where.v6.sin6_addr = in6addr_loopback;
	return where;
}

static socklen_t size(const union address *where)
{
	return where->any.sa_family == AF_INET ? sizeof(where->v4) : sizeof(where->v6);
}

static union address name(int fd)
{
	union address where = {0};
	socklen_t length = sizeof(where);
	MUST(getsockname(fd, &where.any, &length));
	return where;
}

static int bound(int family, int type)
{
	int fd = make(family, type);
	union address where = loopback(family);
	MUST(bind(fd, &where.any, size(&where)));
	return fd;
}

static void set(int fd, int level, int option, int value)
{
	MUST(setsockopt(fd, level, option, &value, sizeof(value)));
}

static int get(int fd, int level, int option)
{
	int value = -1;
	socklen_t length = sizeof(value);
	return getsockopt(fd, level, option, &value, &length) == 0 ? value : -1;
}

static bool same(union address one, union address other)
{
	return memcmp(&one, &other, size(&one)) == 0;
}

static void send_from(int fd, const union address *where, const char *text)
{
	if (sendto(fd, text, strlen(text), 0, &where->any, size(where)) != (ssize_t)strlen(text))
		victim_die("sendto");
}

/* What a server of both families sets at one socket, as those of QUIC and of names do. */
static const struct {
	int level, option, value;
} wishes[] = {
	{IPPROTO_IP, IP_TOS, TOS},
	{IPPROTO_IP, IP_PKTINFO, 1},
	{IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE},
	{IPPROTO_IP, IP_RECVTOS, 1},
	{IPPROTO_IP, IP_RECVERR, 1},
	{IPPROTO_IPV6, IPV6_RECVPKTINFO, 1},
	{IPPROTO_IPV6, 73 /* IPV6_MINHOPCOUNT */, 3},
	{IPPROTO_UDP, 103 /* UDP_SEGMENT */, 1200},
	{IPPROTO_UDP, 104 /* UDP_GRO */, 1},
};
static int dual;

static void make_all(void)
{
	dual = make(AF_INET6, SOCK_DGRAM);
	for (size_t index = 0; index < ARRAY_LENGTH(wishes); index++)
		set(dual, wishes[index].level, wishes[index].option, wishes[index].value);
	listener = bound(AF_INET, SOCK_STREAM);
	set(listener, SOL_SOCKET, SO_KEEPALIVE, 1);
	set(listener, IPPROTO_TCP, TCP_KEEPIDLE, IDLE_SECONDS);
	MUST(listen(listener, BACKLOG));
	listener_at = name(listener);
	listener6 = make(AF_INET6, SOCK_STREAM);
	set(listener6, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	set(listener6, SOL_SOCKET, SO_REUSEADDR, 1);
	union address where = loopback(AF_INET6);
	MUST(bind(listener6, &where.any, size(&where)));
	MUST(listen(listener6, 1));
	listener6_at = name(listener6);
	fresh = make(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
	set(fresh, IPPROTO_TCP, TCP_NODELAY, 1);

	receiver = bound(AF_INET, SOCK_DGRAM);
	receiver_at = name(receiver);
	set(receiver, SOL_SOCKET, SO_RCVBUF, ROOM);
	named = bound(AF_INET, SOCK_DGRAM);
	named_at = name(named);
	set(named, IPPROTO_IP, IP_TOS, TOS);
	stranger = make(AF_INET, SOCK_DGRAM);
	closed_source = bound(AF_INET, SOCK_DGRAM);
	send_from(named, &receiver_at, "from a name");
	send_from(closed_source, &receiver_at, "from one that is gone");
	close(closed_source);
	connected = make(AF_INET, SOCK_DGRAM);
	MUST(connect(connected, &named_at.any, size(&named_at)));
	connected_at = name(connected);
	send_from(named, &connected_at, "to the connected");
	receiver6 = bound(AF_INET6, SOCK_DGRAM);
	receiver6_at = name(receiver6);
	sender6 = bound(AF_INET6, SOCK_DGRAM);
	sender6_at = name(sender6);
	send_from(sender6, &receiver6_at, "six");
}

static void expect_datagram(int fd, const char *text, const union address *from)
{
	char found[100] = "";
	union address where = {0};
	socklen_t length = sizeof(where);
	struct pollfd one = {.fd = fd, .events = POLLIN};
	EXPECT(poll(&one, 1, 5000) == 1, "there is no datagram \"%s\"", text);
	ssize_t count = recvfrom(fd, found, sizeof(found) - 1, MSG_DONTWAIT, &where.any, &length);
	EXPECT(count >= 0 && strcmp(found, text) == 0, "the datagram is \"%s\", not \"%s\"", found, text);
	EXPECT(!from || same(where, *from), "the datagram \"%s\" is from somebody else", text);
}

static void check_listener(int fd, const union address *where, int backlog)
{
	struct tcp_info info = {0};
	socklen_t length = sizeof(info);
	EXPECT(same(name(fd), *where), "a listener has another name");
	EXPECT(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_sacked == (uint32_t)backlog,
	       "a listener has a backlog of %u", info.tcpi_sacked);
	int client = make(where->any.sa_family, SOCK_STREAM);
	EXPECT(connect(client, &where->any, size(where)) == 0, "nobody can connect: %s", strerror(errno));
	int accepted = accept(fd, NULL, NULL);
	EXPECT(accepted >= 0, "nothing can be accepted: %s", strerror(errno));
	char byte = 0;
	EXPECT(send(client, "x", 1, MSG_NOSIGNAL) == 1 && recv(accepted, &byte, 1, 0) == 1, "a new connection is dead");
	close(client);
	close(accepted);
}

static void check_all(void)
{
	check_listener(listener, &listener_at, BACKLOG);
	check_listener(listener6, &listener6_at, 1);
	EXPECT(get(listener, SOL_SOCKET, SO_KEEPALIVE) == 1 && get(listener, IPPROTO_TCP, TCP_KEEPIDLE) == IDLE_SECONDS &&
		       get(listener, SOL_SOCKET, SO_REUSEADDR) == 0,
	       "options of the listener changed");
	EXPECT(get(listener6, IPPROTO_IPV6, IPV6_V6ONLY) == 1 && get(listener6, SOL_SOCKET, SO_REUSEADDR) == 1,
	       "options of the IPv6 listener changed");
	EXPECT(get(fresh, IPPROTO_TCP, TCP_NODELAY) == 1 && fcntl(fresh, F_GETFL) == (O_RDWR | O_NONBLOCK),
	       "the fresh socket changed");
	EXPECT(get(receiver, SOL_SOCKET, SO_RCVBUF) == 2 * ROOM, "the room is %d", get(receiver, SOL_SOCKET, SO_RCVBUF));
	EXPECT(get(named, IPPROTO_IP, IP_TOS) == TOS, "the type of service is %d", get(named, IPPROTO_IP, IP_TOS));
	for (size_t index = 0; index < ARRAY_LENGTH(wishes); index++)
		EXPECT(get(dual, wishes[index].level, wishes[index].option) == wishes[index].value,
		       "option %d of level %d changed", wishes[index].option, wishes[index].level);
	EXPECT(same(name(receiver), receiver_at) && same(name(named), named_at) && same(name(connected), connected_at),
	       "a UDP socket has another name");
	expect_datagram(receiver, "from a name", &named_at);
	expect_datagram(receiver, "from one that is gone", NULL);
	expect_datagram(connected, "to the connected", &named_at);
	expect_datagram(receiver6, "six", &sender6_at);
	EXPECT(send(connected, "answer", 6, 0) == 6, "the connected socket sends nothing");
	expect_datagram(named, "answer", &connected_at);
	send_from(stranger, &connected_at, "not from the peer");
	send_from(named, &connected_at, "from the peer");
	expect_datagram(connected, "from the peer", &named_at);
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make_all();
	victim_ready();
	while (!victim_asked())
		victim_rest();
	check_all();
	return victim_end();
}
