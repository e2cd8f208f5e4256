/*
 * POSIX message queues: one with messages of several priorities, opened twice; an empty one that another thread waits at; and
 * one whose name is gone.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROOM = 5, BYTES = 300 };

static mqd_t full, reader, empty, deleted;
static char names[3][64];

static mqd_t make(int index, int flags)
{
	struct mq_attr room = {.mq_maxmsg = ROOM, .mq_msgsize = BYTES};
	snprintf(names[index], sizeof(names[index]), "/crd-victim-%d-%d", getpid(), index);
	return MUST(mq_open(names[index], O_CREAT | O_EXCL | flags, 0640, &room));
}

static void put(mqd_t queue, const char *text, unsigned priority)
{
	MUST(mq_send(queue, text, strlen(text), priority));
}

static void expect(mqd_t queue, const char *text, unsigned priority)
{
	char found[BYTES] = "";
	unsigned its = 0;
	ssize_t length = mq_receive(queue, found, sizeof(found), &its);
	EXPECT(length == (ssize_t)strlen(text) && memcmp(found, text, strlen(text)) == 0 && its == priority,
	       "the message is \"%.20s\" of priority %u: %s", found, its, strerror(errno));
}

static void *await(void *argument)
{
	expect(empty, "at last", 3);
	return argument;
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	full = make(0, O_RDWR | O_NONBLOCK);
	reader = MUST(mq_open(names[0], O_RDONLY));
	empty = make(1, O_RDWR);
	deleted = make(2, O_RDWR);
	MUST(mq_unlink(names[2]));
	put(full, "low", 1);
	put(full, "high", 9);
	put(full, "low again", 1);
	put(full, "", 0);
	put(full, "higher", 10);
	put(deleted, "without a name", 2);
	pthread_t waiting;
	if (pthread_create(&waiting, NULL, await, NULL) != 0)
		victim_die("pthread_create");
	victim_ready();
	while (!victim_asked())
		victim_rest();
	struct mq_attr about;
	EXPECT(mq_getattr(full, &about) == 0 && about.mq_maxmsg == ROOM && about.mq_msgsize == BYTES && about.mq_curmsgs == 5 &&
		       about.mq_flags == O_NONBLOCK,
	       "there are %ld messages, flags %#lx", about.mq_curmsgs, about.mq_flags);
	EXPECT(mq_getattr(reader, &about) == 0 && about.mq_flags == 0, "the other description has the flags %#lx", about.mq_flags);
	struct stat file;
	EXPECT(fstat(full, &file) == 0 && (file.st_mode & 0777) == 0640, "the mode is %o", file.st_mode);
	EXPECT(mq_send(full, "x", 1, 0) == -1 && errno == EAGAIN, "there is room for more");
	EXPECT(mq_send(reader, "x", 1, 0) == -1 && errno == EBADF, "the reader can send");
	expect(reader, "higher", 10);
	expect(full, "high", 9);
	expect(reader, "low", 1);
	expect(full, "low again", 1);
	expect(reader, "", 0);
	EXPECT(mq_receive(full, (char[BYTES]){0}, BYTES, NULL) == -1 && errno == EAGAIN, "there is one more");
	expect(deleted, "without a name", 2);
	put(empty, "at last", 3);
	EXPECT(pthread_join(waiting, NULL) == 0, "the thread does not end");
	MUST(mq_unlink(names[0]));
	MUST(mq_unlink(names[1]));
	EXPECT(mq_unlink(names[2]) == -1 && errno == ENOENT, "the third one has its name again");
	return victim_end();
}
