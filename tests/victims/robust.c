/*
 * What the kernel keeps for the C library: the list of robust mutexes, the address to clear when a thread ends, and
 * restartable sequences.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS = 2 };

struct facts {
	struct robust_list_head *list;
	size_t list_bytes;
};

static pthread_mutex_t *mutexes; /* one per thread, in shared memory */
static volatile uint64_t rounds[THREADS];
static volatile bool end;

static struct facts get_facts(void)
{
	struct facts facts = {0};
	MUST(syscall(SYS_get_robust_list, 0, &facts.list, &facts.list_bytes));
	return facts;
}

static volatile struct rseq *sequences(void)
{
	return (volatile struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/* The kernel writes the CPU into the area at every move: pinned to one, that one must be in it. */
static void check_sequences(int turn)
{
	if (__rseq_size == 0)
		return;
	int cpu = turn % (int)sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) != 0)
		return;
	EXPECT(sequences()->cpu_id == (uint32_t)cpu, "rseq says CPU %d, not %d", (int)sequences()->cpu_id, cpu);
	long again = syscall(SYS_rseq, sequences(), 32, 0, RSEQ_SIG);
	EXPECT(again == -1 && errno == EBUSY, "rseq is not registered any more: %s", strerror(errno));
}

static void *hold(void *argument)
{
	int index = (int)(intptr_t)argument;
	struct facts before = get_facts();
	EXPECT(before.list != NULL, "no list of robust mutexes");
	pthread_mutex_lock(&mutexes[index]);
	while (!end) {
		struct facts now = get_facts();
		EXPECT(now.list == before.list && now.list_bytes == before.list_bytes, "the list of robust mutexes moved");
		check_sequences((int)rounds[index]);
		rounds[index]++;
		victim_rest();
	}
	return argument; /* with the mutex locked */
}

static void make_mutexes(void)
{
	mutexes = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pthread_mutexattr_t attributes;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	for (int index = 0; index < THREADS; index++)
		pthread_mutex_init(&mutexes[index], &attributes);
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make_mutexes();
	pthread_t handles[THREADS];
	for (int index = 0; index < THREADS; index++)
		if (pthread_create(&handles[index], NULL, hold, (void *)(intptr_t)index) != 0)
			victim_die("pthread_create");
	for (int index = 0; index < THREADS; index++)
		victim_reaches(&rounds[index], 1);
	victim_ready();
	while (!victim_asked())
		victim_rest();
	for (int index = 0; index < THREADS; index++) {
		EXPECT(victim_reaches(&rounds[index], rounds[index] + 3), "thread %d stands still", index);
		EXPECT(pthread_mutex_trylock(&mutexes[index]) == EBUSY, "mutex %d is free", index);
	}
	end = true;
	for (int index = 0; index < THREADS; index++) {
		EXPECT(pthread_join(handles[index], NULL) == 0, "thread %d cannot be joined", index);
		EXPECT(pthread_mutex_lock(&mutexes[index]) == EOWNERDEAD, "the kernel did not release mutex %d", index);
	}
	return victim_end();
}
