/*
 * Sockets to the kernel, with names, groups and options; and sockets of several kinds with a filter, which lets through
 * what begins with some letter: no event does, or one could wait whenever somebody plugs in a device.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HIGH_GROUP = 35, UDP_HEADER_BYTES = 8 };

static int route, events, unbound, datagrams[2], pair[2];
static uint32_t port;

static uint32_t name_of(int fd)
{
	struct sockaddr_nl name;
	MUST(getsockname(fd, (struct sockaddr *)&name, &(socklen_t){sizeof(name)}));
	return name.nl_pid;
}

static void let_through(int fd, uint32_t offset, char letter)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, offset),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)letter, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog program = {.len = ARRAY_LENGTH(code), .filter = code};
	MUST(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
}

static void make_netlinks(void)
{
	route = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
	MUST(bind(route, (struct sockaddr *)&(struct sockaddr_nl){.nl_family = AF_NETLINK}, sizeof(struct sockaddr_nl)));
	MUST(setsockopt(route, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &(int){HIGH_GROUP}, sizeof(int)));
	MUST(setsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &(int){1}, sizeof(int)));
	port = name_of(route);
	events = MUST(socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT));
	struct sockaddr_nl everything = {.nl_family = AF_NETLINK, .nl_pid = port + 100000, .nl_groups = 1};
	MUST(bind(events, (struct sockaddr *)&everything, sizeof(everything)));
	let_through(events, 0, 'Z');
	unbound = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC));
}

static void make_filtered(void)
{
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	for (int i = 0; i < 2; i++)
		datagrams[i] = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
	MUST(bind(datagrams[0], (struct sockaddr *)&name, sizeof(name)));
	MUST(getsockname(datagrams[0], (struct sockaddr *)&name, &(socklen_t){sizeof(name)}));
	MUST(connect(datagrams[1], (struct sockaddr *)&name, sizeof(name)));
	let_through(datagrams[0], UDP_HEADER_BYTES, 'a');
	MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair));
	MUST(send(pair[1], "before", 6, 0));
	let_through(pair[0], 0, 'a');
	MUST(setsockopt(pair[0], SOL_SOCKET, SO_LOCK_FILTER, &(int){1}, sizeof(int)));
}

static bool is_member(int fd, int group)
{
	uint32_t words[32] = {0};
	MUST(getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &(socklen_t){sizeof(words)}));
	return words[(group - 1) / 32] >> (group - 1) % 32 & 1;
}

/* Asks for the first interface, and expects an answer to the port that the socket had from the beginning. */
static void check_answer(void)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg which;
	} request = {
		.header = {.nlmsg_len = sizeof(request), .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST, .nlmsg_seq = 7},
		.which = {.ifi_index = 1},
	};
	char answer[16384] __attribute__((aligned(8)));
	const struct nlmsghdr *header = (const struct nlmsghdr *)answer;
	EXPECT(send(route, &request, sizeof(request), 0) == sizeof(request), "the kernel cannot be asked: %s", strerror(errno));
	ssize_t count = recv(route, answer, sizeof(answer), MSG_DONTWAIT);
	EXPECT(count > 0, "the kernel does not answer: %s", strerror(errno));
	EXPECT(count > 0 && header->nlmsg_type == RTM_NEWLINK && header->nlmsg_seq == 7 && header->nlmsg_pid == port,
	       "the kernel's answer is of type %d, to port %u", header->nlmsg_type, header->nlmsg_pid);
}

static void check_netlinks(void)
{
	int set = 0;
	EXPECT(name_of(route) == port, "port %u has become %u", port, name_of(route));
	EXPECT(name_of(events) == port + 100000, "port %u has become %u", port + 100000, name_of(events));
	EXPECT(name_of(unbound) == 0, "a socket without a port has port %u", name_of(unbound));
	EXPECT(is_member(route, HIGH_GROUP) && !is_member(route, 1), "the groups are others");
	EXPECT(is_member(events, 1), "the events do not come any more");
	MUST(getsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &set, &(socklen_t){sizeof(set)}));
	EXPECT(set, "NETLINK_EXT_ACK is gone");
	check_answer();
}

static void check_lets_through(int receiver, int sender, const char *what)
{
	char text[16] = "";
	send(sender, "bad", 3, 0);
	MUST(send(sender, "a good one", 10, 0));
	EXPECT(recv(receiver, text, sizeof(text), 0) == 10 && memcmp(text, "a good one", 10) == 0,
	       "%s lets something else through: %s", what, text);
}

static void check_filtered(void)
{
	char text[16] = "";
	struct sock_filter code[64];
	socklen_t length = ARRAY_LENGTH(code);
	EXPECT(recv(pair[0], text, sizeof(text), 0) == 6 && memcmp(text, "before", 6) == 0, "what waited is %s", text);
	check_lets_through(pair[0], pair[1], "the pair");
	check_lets_through(datagrams[0], datagrams[1], "the port");
	MUST(getsockopt(events, SOL_SOCKET, SO_GET_FILTER, code, &length));
	EXPECT(length == 4 && code[1].k == 'Z', "the events have a filter of %u instructions", length);
	EXPECT(setsockopt(pair[0], SOL_SOCKET, SO_DETACH_FILTER, &(int){0}, sizeof(int)) < 0 && errno == EPERM,
	       "the filter is not locked");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make_netlinks();
	make_filtered();
	victim_ready();
	while (!victim_asked())
		victim_rest();
	check_netlinks();
	check_filtered();
	return victim_end();
}
