/*
 * System V semaphores and message queues: a set with a key, and a queue with messages of several kinds that wait.
 * With the argument "undo" an operation would be undone at the end (SEM_UNDO).
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <unistd.h>

enum { SEMAPHORES = 3, LONG = 2000 };

struct message {
	long kind;
	char text[LONG];
};

static int set, queue;
static key_t key;

static void change(int index, int by, int flags)
{
	struct sembuf one = {.sem_num = (unsigned short)index, .sem_op = (short)by, .sem_flg = (short)flags};
	while (semop(set, &one, 1) == -1)
		if (errno != EINTR)
			victim_die("semop");
}

static void put(long kind, const char *text, size_t length)
{
	struct message one = {.kind = kind};
	memcpy(one.text, text, length);
	MUST(msgsnd(queue, &one, length, 0));
}

static void expect(long wanted, long kind, const char *text, size_t length)
{
	struct message one = {0};
	ssize_t found = msgrcv(queue, &one, sizeof(one.text), wanted, IPC_NOWAIT);
	EXPECT(found == (ssize_t)length && one.kind == kind && memcmp(one.text, text, length) == 0,
	       "a message is of kind %ld with %zd bytes: %s", one.kind, found, strerror(errno));
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	static char many[LONG];
	memset(many, 'm', sizeof(many));
	key = 0x43530000 | (getpid() & 0xffff);
	set = MUST(semget(key, SEMAPHORES, IPC_CREAT | IPC_EXCL | 0640));
	queue = MUST(msgget(key, IPC_CREAT | IPC_EXCL | 0600));
	change(0, 5, 0);
	change(2, 7, 0);
	change(2, -3, argc > 2 ? SEM_UNDO : 0);
	put(3, "three", 5);
	put(1, "one", 3);
	put(2, many, sizeof(many));
	put(1, "", 0);
	victim_ready();
	while (!victim_asked())
		victim_rest();
	EXPECT(semget(key, 0, 0) == set && msgget(key, 0) == queue, "a key leads to something else");
	EXPECT(semctl(set, 0, GETVAL) == 5 && semctl(set, 1, GETVAL) == 0 && semctl(set, 2, GETVAL) == 4,
	       "the values are %d %d %d", semctl(set, 0, GETVAL), semctl(set, 1, GETVAL), semctl(set, 2, GETVAL));
	struct semid_ds about = {0};
	union semun {
		struct semid_ds *status;
	} argument = {.status = &about};
	EXPECT(semctl(set, 0, IPC_STAT, argument) == 0 && (about.sem_perm.mode & 0777) == 0640, "the mode of the set changed");
	change(0, -5, 0);
	expect(1, 1, "one", 3);
	expect(0, 3, "three", 5);
	expect(0, 2, many, sizeof(many));
	expect(0, 1, "", 0);
	MUST(semctl(set, 0, IPC_RMID));
	MUST(msgctl(queue, IPC_RMID, NULL));
	return victim_end();
}
