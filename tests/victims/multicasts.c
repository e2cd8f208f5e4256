/*
 * Sockets of UDP that are members of groups at the loopback interface: from everybody, from one source alone, from all but one,
 * of IPv6, and one of no group; each takes only what its own memberships let it.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LOOPBACK = 1, PATIENCE_MILLISECONDS = 5000 };

static const char *const all_group = "239.7.7.1", *const one_group = "232.7.7.2", *const but_group = "239.7.7.3",
			 *const group6 = "ff11::7:7", *const ours = "127.0.0.1", *const others = "127.0.0.9";

static int from_all, from_one, from_all_but_one, member6, member_of_none;

static struct sockaddr_storage v4(const char *text, in_port_t port)
{
	struct sockaddr_storage where = {0};
	struct sockaddr_in *address = (struct sockaddr_in *)&where;
	address->sin_family = AF_INET;
	address->sin_port = port;
	MUST(inet_pton(AF_INET, text, &address->sin_addr) - 1);
	return where;
}

static struct sockaddr_storage v6(const char *text)
{
	struct sockaddr_storage where = {0};
	struct sockaddr_in6 *address = (struct sockaddr_in6 *)&where;
	address->sin6_family = AF_INET6;
	MUST(inet_pton(AF_INET6, text, &address->sin6_addr) - 1);
	return where;
}

static in_port_t port_of(int fd)
{
	struct sockaddr_in name;
	MUST(getsockname(fd, (struct sockaddr *)&name, &(socklen_t){sizeof(name)}));
	return name.sin_port;
}

static int bound(struct sockaddr_storage where)
{
	int fd = MUST(socket(where.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	if (where.ss_family == AF_INET) /* or it would take what comes for the groups of others */
		MUST(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_ALL, &(int){0}, sizeof(int)));
	MUST(bind(fd, (struct sockaddr *)&where, sizeof(where)));
	return fd;
}

static void change_source(int fd, int option, const char *group, const char *source)
{
	struct group_source_req which = {.gsr_interface = LOOPBACK, .gsr_group = v4(group, 0), .gsr_source = v4(source, 0)};
	MUST(setsockopt(fd, IPPROTO_IP, option, &which, sizeof(which)));
}

static struct ip_mreqn by_address(const char *group)
{
	struct ip_mreqn which = {0};
	MUST(inet_pton(AF_INET, group, &which.imr_multiaddr) - 1);
	MUST(inet_pton(AF_INET, ours, &which.imr_address) - 1);
	return which;
}

static void make_members(void)
{
	struct ip_mreqn all = by_address(all_group), but = by_address(but_group);
	struct group_req which6 = {.gr_interface = LOOPBACK, .gr_group = v6(group6)};

	from_all = bound(v4("0.0.0.0", 0));
	MUST(setsockopt(from_all, IPPROTO_IP, IP_ADD_MEMBERSHIP, &all, sizeof(all)));
	from_one = bound(v4("0.0.0.0", 0));
	change_source(from_one, MCAST_JOIN_SOURCE_GROUP, one_group, others);
	change_source(from_one, MCAST_JOIN_SOURCE_GROUP, one_group, ours);
	from_all_but_one = bound(v4("0.0.0.0", 0));
	MUST(setsockopt(from_all_but_one, IPPROTO_IP, IP_ADD_MEMBERSHIP, &but, sizeof(but)));
	change_source(from_all_but_one, MCAST_BLOCK_SOURCE, but_group, others);
	member6 = bound(v6("::"));
	MUST(setsockopt(member6, IPPROTO_IPV6, MCAST_JOIN_GROUP, &which6, sizeof(which6)));
	member_of_none = bound(v4("0.0.0.0", 0));
}

static void send_from(const char *source, const char *group, int to)
{
	struct sockaddr_storage from = v4(source, 0), where = v4(group, port_of(to));
	struct in_addr interface = ((struct sockaddr_in *)&from)->sin_addr;
	int fd = bound(from);
	MUST(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &interface, sizeof(interface)));
	MUST(sendto(fd, source, strlen(source), 0, (struct sockaddr *)&where, sizeof(where)));
	close(fd);
}

/* Of what comes from them first and then from us, the first thing taken must be this; "" = nothing. */
static void check_takes(int fd, const char *group, const char *expected)
{
	char text[32] = "";
	struct pollfd one = {.fd = fd, .events = POLLIN};

	send_from(others, group, fd);
	send_from(ours, group, fd);
	if (poll(&one, 1, *expected ? PATIENCE_MILLISECONDS : 0) > 0)
		MUST(recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT));
	EXPECT(strcmp(text, expected) == 0, "in %s \"%s\" came first, not \"%s\"", group, text, expected);
}

static void check_filter(int fd, const char *group, uint32_t mode, uint32_t n_sources)
{
	struct group_filter filter = {.gf_interface = LOOPBACK, .gf_numsrc = 1};
	bool is_v6 = strchr(group, ':');

	filter.gf_group = is_v6 ? v6(group) : v4(group, 0);
	EXPECT(getsockopt(fd, is_v6 ? IPPROTO_IPV6 : IPPROTO_IP, MCAST_MSFILTER, &filter, &(socklen_t){sizeof(filter)}) == 0,
	       "it is no member of %s: %s", group, strerror(errno));
	EXPECT(filter.gf_fmode == mode && filter.gf_numsrc == n_sources, "%s has the mode %u and %u sources", group,
	       filter.gf_fmode, filter.gf_numsrc);
}

static void check_members(void)
{
	struct ip_mreqn all = by_address(all_group);

	check_filter(from_all, all_group, MCAST_EXCLUDE, 0);
	check_filter(from_one, one_group, MCAST_INCLUDE, 2);
	check_filter(from_all_but_one, but_group, MCAST_EXCLUDE, 1);
	check_filter(member6, group6, MCAST_EXCLUDE, 0);
	check_takes(from_all, all_group, others);
	check_takes(from_one, one_group, others);
	check_takes(from_all_but_one, but_group, ours);
	check_takes(member_of_none, all_group, "");
	EXPECT(setsockopt(from_all, IPPROTO_IP, IP_DROP_MEMBERSHIP, &all, sizeof(all)) == 0, "%s cannot be left: %s", all_group,
	       strerror(errno));
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make_members();
	victim_ready();
	while (!victim_asked())
		victim_rest();
	check_members();
	return victim_end();
}
