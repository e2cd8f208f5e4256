/*
 * Threads: ARGUMENT of them count.  Each checks its thread id, its name and its thread-local storage at every step, and
 * that the clock of the vdso does not run backwards.  The main thread writes each number to PREFIX.progress at its own
 * file offset: what is lost or done twice leaves a gap.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { THREADS_MAX = 256, LINE_BYTES = 9 };

static __thread uint64_t own_secret;
static volatile uint64_t counts[THREADS_MAX];
static volatile bool end;

struct identity {
	int index;
	pid_t tid;
	uint64_t secret;
	uint64_t clock;
	char name[16];
};

static void take_identity(struct identity *me, int index)
{
	me->index = index;
	me->tid = victim_tid();
	me->secret = own_secret = 0x9e3779b97f4a7c15 * (uint64_t)(index + 1);
	me->clock = victim_now();
	snprintf(me->name, sizeof(me->name), "counter-%d", index);
	MUST(prctl(PR_SET_NAME, me->name));
}

static void check_identity(struct identity *me)
{
	char name[16] = "";
	prctl(PR_GET_NAME, name);
	uint64_t clock = victim_now();
	EXPECT(own_secret == me->secret, "thread %d: thread-local storage changed", me->index);
	EXPECT(victim_tid() == me->tid, "thread %d: tid was %d, is %d", me->index, me->tid, victim_tid());
	EXPECT(strcmp(name, me->name) == 0, "thread %d: name was %s, is %s", me->index, me->name, name);
	EXPECT(clock >= me->clock, "thread %d: the monotonic clock ran backwards", me->index);
	me->clock = clock;
}

static void *count(void *argument)
{
	struct identity me;
	take_identity(&me, (int)(intptr_t)argument);
	while (!end) {
		check_identity(&me);
		counts[me.index]++;
		victim_rest();
	}
	return argument;
}

static void write_progress(int fd, uint64_t number)
{
	char line[32];
	snprintf(line, sizeof(line), "%08llu\n", (unsigned long long)number);
	EXPECT(write(fd, line, LINE_BYTES) == LINE_BYTES, "progress %llu was not written", (unsigned long long)number);
}

static void check_progress(int fd, uint64_t last)
{
	EXPECT(lseek(fd, 0, SEEK_CUR) == (off_t)(last * LINE_BYTES), "the file offset is not after line %llu",
	       (unsigned long long)last);
	FILE *file = fopen(victim_path("progress"), "r");
	if (file == NULL) {
		victim_fail("the progress file is gone");
		return;
	}
	char line[32];
	for (uint64_t number = 1; number <= last; number++)
		if (fgets(line, sizeof(line), file) == NULL || strtoull(line, NULL, 10) != number) {
			victim_fail("line %llu of the progress file is wrong", (unsigned long long)number);
			break;
		}
	fclose(file);
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	int threads = argc > 2 ? atoi(argv[2]) : 1;
	if (threads < 1 || threads > THREADS_MAX)
		return 2;
	int progress = MUST(open(victim_path("progress"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
	pid_t pid = getpid();
	pthread_t handles[THREADS_MAX];
	for (int index = 1; index < threads; index++)
		if (pthread_create(&handles[index], NULL, count, (void *)(intptr_t)index) != 0)
			victim_die("pthread_create");
	struct identity me;
	take_identity(&me, 0);
	for (bool ready = false; !victim_asked();) {
		check_identity(&me);
		EXPECT(getpid() == pid, "the pid was %d, is %d", pid, getpid());
		write_progress(progress, ++counts[0]);
		if (!ready && counts[0] == 3) {
			for (int index = 1; index < threads; index++)
				victim_reaches(&counts[index], 1);
			victim_ready();
			ready = true;
		}
		victim_rest();
	}
	for (int index = 1; index < threads; index++)
		EXPECT(victim_reaches(&counts[index], counts[index] + 2), "thread %d does not count on", index);
	end = true;
	for (int index = 1; index < threads; index++) {
		void *result = NULL;
		EXPECT(pthread_join(handles[index], &result) == 0, "thread %d cannot be joined", index);
		EXPECT((intptr_t)result == index, "thread %d returned something else", index);
	}
	check_progress(progress, counts[0]);
	return victim_end();
}
