/*
 * Unix sockets: pairs of every type with data in flight, descriptors and credentials in flight, ends that are closed or shut
 * down, listeners with a path, a relative and an abstract name, accepted connections, datagrams with senders, options.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BYTES = 30000, ROOM = 300000 };

static int stream[2], dgram[2], packets[2], rights[2], hung, reset_end, half[2], play_pair[2], told[2];
static int listener, abstract, client, accepted, abstract_client, abstract_accepted;
static int receiver, sender, connected_sender, carried_pipe;
static char directory[PATH_MAX];
static volatile bool end;

static unsigned char byte_at(size_t offset)
{
	return (unsigned char)(offset * 11 + 3);
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
	static unsigned char content[BYTES + 1];
	size_t found = 0;
	for (ssize_t count; found < length && (count = recv(fd, content + found, length - found, MSG_DONTWAIT)) > 0;)
		found += (size_t)count;
	for (size_t at = 0; at < found; at++)
		if (content[at] != byte_at(at))
			return false;
	return found == length;
}

static void send_fds(int fd, const char *text, const int *fds, size_t count)
{
	char control[CMSG_SPACE(8 * sizeof(int))] = {0};
	struct iovec part = {.iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = CMSG_SPACE(count * sizeof(int))};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(header), fds, count * sizeof(int));
	MUST(sendmsg(fd, &message, 0));
}

/* Receives up to length bytes; returns the descriptor that came with them, -1 if none, and the pid of the sender. */
static int receive(int fd, char *text, size_t length, pid_t *pid)
{
	char control[CMSG_SPACE(8 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))] = {0};
	struct iovec part = {.iov_base = text, .iov_len = length - 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	int found = -1;
	ssize_t count = recvmsg(fd, &message, MSG_DONTWAIT);
	text[count > 0 ? count : 0] = '\0';
	for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); count >= 0 && header; header = CMSG_NXTHDR(&message, header)) {
		if (header->cmsg_type == SCM_RIGHTS)
			memcpy(&found, CMSG_DATA(header), sizeof(found));
		if (header->cmsg_type == SCM_CREDENTIALS && pid) {
			struct ucred sender_credentials;
			memcpy(&sender_credentials, CMSG_DATA(header), sizeof(sender_credentials));
			*pid = sender_credentials.pid;
		}
	}
	return found;
}

static socklen_t address(struct sockaddr_un *where, const char *path)
{
	*where = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(where->sun_path + (*path == '@'), sizeof(where->sun_path) - 1, "%s", path + (*path == '@'));
	if (*path == '@')
		return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	return sizeof(*where);
}

static const char *abstract_name(void)
{
	static char name[64];
	static pid_t first;
	if (first == 0)
		first = getpid();
	snprintf(name, sizeof(name), "@crd-victim-%d", first);
	return name;
}

static int bound(int type, const char *path)
{
	struct sockaddr_un where;
	int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
	MUST(bind(fd, (struct sockaddr *)&where, address(&where, path)));
	return fd;
}

static int connected(int type, const char *path)
{
	struct sockaddr_un where;
	int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
	MUST(connect(fd, (struct sockaddr *)&where, address(&where, path)));
	return fd;
}

static void make_pairs(void)
{
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream));
	put(stream[0], BYTES);
	put(stream[1], 10);
	MUST(setsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &(int){ROOM}, sizeof(int)));
	MUST(setsockopt(stream[1], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){.tv_sec = 7, .tv_usec = 500000},
			sizeof(struct timeval)));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, dgram));
	put(dgram[0], 100);
	put(dgram[0], 7000);
	put(dgram[0], 1);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
	put(packets[1], 5);
	put(packets[1], 50);
	int pair[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	put(pair[1], 20);
	hung = pair[0];
	close(pair[1]);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	put(pair[0], 3);
	reset_end = pair[0];
	close(pair[1]);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
	put(half[0], 30);
	MUST(shutdown(half[0], SHUT_WR));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, play_pair));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, told));
	MUST(setsockopt(told[1], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)));
	put(told[0], 4);
}

static void make_rights(void)
{
	int ends[2], pair[2];
	MUST(pipe(ends));
	if (write(ends[1], "carried", 7) != 7)
		victim_die("write");
	carried_pipe = ends[1];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	put(pair[0], 12);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, rights));
	MUST(send(rights[0], "before", 6, 0));
	send_fds(rights[0], "X", (int[]){ends[0], stream[1]}, 2);
	send_fds(rights[0], "Y", (int[]){pair[1]}, 1);
	MUST(send(rights[0], "after", 5, 0));
	close(ends[0]);
	close(pair[1]);
	close(pair[0]);
}

static void make_names(void)
{
	snprintf(directory, sizeof(directory), "%s", victim_path("dir"));
	MUST(mkdir(directory, 0755));
	MUST(chdir(directory));
	listener = bound(SOCK_STREAM, "listener");
	MUST(chmod("listener", 0640));
	MUST(listen(listener, 17));
	client = connected(SOCK_STREAM, "listener");
	accepted = MUST(accept(listener, NULL, NULL));
	put(client, 40);
	abstract = bound(SOCK_SEQPACKET, abstract_name());
	MUST(listen(abstract, 3));
	abstract_client = connected(SOCK_SEQPACKET, abstract_name());
	abstract_accepted = MUST(accept(abstract, NULL, NULL));
	char path[PATH_MAX + 16];
	snprintf(path, sizeof(path), "%s/receiver", directory);
	receiver = bound(SOCK_DGRAM, "receiver");
	sender = bound(SOCK_DGRAM, "sender");
	struct sockaddr_un where;
	socklen_t length = address(&where, "receiver");
	MUST(sendto(sender, "from a name", 11, 0, (struct sockaddr *)&where, length));
	connected_sender = connected(SOCK_DGRAM, "receiver");
	MUST(send(connected_sender, "from nobody", 11, 0));
	MUST(chdir(".."));
}

static void *play(void *argument)
{
	uint64_t number;
	while (!end)
		EXPECT(read(play_pair[1], &number, 8) == 8 && write(play_pair[1], &number, 8) == 8, "the play stops");
	return argument;
}

static void check_pairs(void)
{
	int room = 0;
	socklen_t length = sizeof(room);
	char text[64];
	pid_t pid = 0;
	struct timeval timeout = {0};
	struct ucred peer = {0};
	EXPECT(holds(stream[1], BYTES) && holds(stream[0], 10), "the stream changed");
	EXPECT(getsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &room, &length) == 0 && room == 2 * ROOM, "the room is %d", room);
	length = sizeof(timeout);
	EXPECT(getsockopt(stream[1], SOL_SOCKET, SO_RCVTIMEO, &timeout, &length) == 0 && timeout.tv_sec == 7 &&
		       timeout.tv_usec == 500000,
	       "the time-out is %lld s", (long long)timeout.tv_sec);
	length = sizeof(peer);
	EXPECT(getsockopt(stream[0], SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid == getpid() &&
		       peer.uid == getuid(),
	       "the peer is %d", peer.pid);
	EXPECT(recv(dgram[1], text, sizeof(text), MSG_TRUNC) == 100 && recv(dgram[1], text, sizeof(text), MSG_TRUNC) == 7000 &&
		       recv(dgram[1], text, sizeof(text), MSG_TRUNC) == 1 && recv(dgram[1], text, 1, 0) == -1 && errno == EAGAIN,
	       "the datagrams changed");
	EXPECT(recv(packets[0], text, sizeof(text), 0) == 5 && recv(packets[0], text, sizeof(text), 0) == 50,
	       "the packets changed");
	EXPECT(holds(hung, 20) && recv(hung, text, 1, 0) == 0, "the socket that lost its peer does not end");
	EXPECT(recv(reset_end, text, 1, 0) == -1 && errno == ECONNRESET, "the reset is gone: %s", strerror(errno));
	EXPECT(holds(half[1], 30) && recv(half[1], text, 1, 0) == 0, "the half-closed socket does not end");
	EXPECT(send(half[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "it can be written");
	EXPECT(send(half[1], "x", 1, MSG_NOSIGNAL) == 1 && recv(half[0], text, 1, 0) == 1, "its other direction is closed");
	receive(told[1], text, sizeof(text), &pid);
	EXPECT(pid == getpid(), "the sender was %d", pid);
	EXPECT(fcntl(dgram[0], F_GETFL) == (O_RDWR | O_NONBLOCK) && fcntl(stream[0], F_GETFD) == FD_CLOEXEC, "flags changed");
}

static void check_rights(void)
{
	char text[64];
	struct stat mine, theirs;
	EXPECT(receive(rights[1], text, 4, NULL) == -1 && strcmp(text, "bef") == 0, "first comes %s", text);
	EXPECT(receive(rights[1], text, 4, NULL) == -1 && strcmp(text, "ore") == 0, "then comes %s", text);
	int pipe_end = receive(rights[1], text, sizeof(text), NULL);
	EXPECT(pipe_end >= 0 && strcmp(text, "X") == 0, "with %s comes no descriptor", text);
	EXPECT(read(pipe_end, text, 7) == 7 && memcmp(text, "carried", 7) == 0, "it is not the pipe");
	EXPECT(write(carried_pipe, "z", 1) == 1 && read(pipe_end, text, 1) == 1 && *text == 'z', "it is another pipe");
	int copy = pipe_end + 1; /* descriptors of one message get numbers in turn */
	EXPECT(fstat(copy, &theirs) == 0 && fstat(stream[1], &mine) == 0 && mine.st_ino == theirs.st_ino, "it is not the socket");
	int carried = receive(rights[1], text, sizeof(text), NULL);
	EXPECT(carried >= 0 && strcmp(text, "Y") == 0 && holds(carried, 12) && recv(carried, text, 1, 0) == 0,
	       "the socket in the socket changed");
	EXPECT(receive(rights[1], text, sizeof(text), NULL) == -1 && strcmp(text, "after") == 0, "at last comes %s", text);
}

static bool called(int fd, const char *name, bool other_end)
{
	struct sockaddr_un where = {0};
	socklen_t length = sizeof(where);
	if ((other_end ? getpeername : getsockname)(fd, (struct sockaddr *)&where, &length) != 0)
		return false;
	return *name == '@' ? memcmp(where.sun_path + 1, name + 1, strlen(name) - 1) == 0 : strcmp(where.sun_path, name) == 0;
}

static void check_names(void)
{
	char text[64];
	struct stat now;
	MUST(chdir(directory));
	EXPECT(called(listener, "listener", false) && called(accepted, "listener", false) && called(client, "listener", true),
	       "a name of the listener changed");
	EXPECT(stat("listener", &now) == 0 && S_ISSOCK(now.st_mode) && (now.st_mode & 0777) == 0640, "its file is another");
	EXPECT(holds(accepted, 40) && send(accepted, "x", 1, MSG_NOSIGNAL) == 1 && recv(client, text, 1, 0) == 1,
	       "the accepted connection changed");
	int fresh = connected(SOCK_STREAM, "listener");
	int met = accept(listener, NULL, NULL);
	EXPECT(met >= 0 && send(fresh, "y", 1, MSG_NOSIGNAL) == 1 && recv(met, text, 1, 0) == 1, "nobody can connect");
	EXPECT(called(abstract, abstract_name(), false) && called(abstract_client, abstract_name(), true), "abstract names changed");
	EXPECT(send(abstract_client, "z", 1, MSG_NOSIGNAL) == 1 && recv(abstract_accepted, text, 2, 0) == 1, "no abstract packet");
	struct sockaddr_un from = {0};
	socklen_t length = sizeof(from);
	EXPECT(recvfrom(receiver, text, sizeof(text), MSG_DONTWAIT, (struct sockaddr *)&from, &length) == 11 &&
		       memcmp(text, "from a name", 11) == 0 && strcmp(from.sun_path, "sender") == 0,
	       "the datagram is from %s", from.sun_path);
	EXPECT(recv(receiver, text, sizeof(text), MSG_DONTWAIT) == 11 && memcmp(text, "from nobody", 11) == 0,
	       "the second datagram is gone");
	EXPECT(send(connected_sender, "more", 4, MSG_NOSIGNAL) == 4 && recv(receiver, text, sizeof(text), MSG_DONTWAIT) == 4,
	       "the connected sender sends elsewhere");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make_pairs();
	make_rights();
	make_names();
	pthread_t player;
	if (pthread_create(&player, NULL, play, NULL) != 0)
		victim_die("pthread_create");
	uint64_t number = 0;
	victim_ready();
	while (!victim_asked()) {
		uint64_t answer = 0;
		number++;
		EXPECT(write(play_pair[0], &number, 8) == 8 && read(play_pair[0], &answer, 8) == 8 && answer == number,
		       "the answer to %llu is %llu", (unsigned long long)number, (unsigned long long)answer);
		victim_rest();
	}
	end = true;
	EXPECT(write(play_pair[0], &number, 8) == 8 && pthread_join(player, NULL) == 0, "the other thread does not end");
	check_pairs();
	check_rights();
	check_names();
	return victim_end();
}
