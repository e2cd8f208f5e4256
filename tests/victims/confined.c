/*
 * Filters of seccomp(2): one that all threads have, one more in the main thread, and a third in the other one.  What they
 * forbid must still be forbidden, and what they allow allowed.  With the argument "forbids" a filter is also in the way
 * of a snapshot child; with "kills" it ends whoever makes a call that crd needs.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile uint64_t lap;
static volatile bool end;
static int started;

/* Answers a call, or only with that first argument, with an action. */
static void forbid(long number, const unsigned *argument, unsigned action)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
		BPF_JUMP(BPF_JMP | (argument ? BPF_JEQ : BPF_JGE) | BPF_K, argument ? *argument : 0, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = ARRAY_LENGTH(code), .filter = code};
	MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static unsigned error(int number)
{
	return SECCOMP_RET_ERRNO | (unsigned)number;
}

static void *work(void *argument)
{
	forbid(SYS_getppid, NULL, error(ENOTNAM));
	__atomic_store_n(&started, 1, __ATOMIC_SEQ_CST);
	while (!end) {
		lap++;
		victim_rest();
	}
	EXPECT(syscall(SYS_getppid) == -1 && errno == ENOTNAM, "the other thread's filter is gone");
	EXPECT(syscall(SYS_getpgid, 0) >= 0, "the other thread has the main thread's filter");
	EXPECT(syscall(SYS_personality, 0xffffffff) == -1 && errno == EXFULL, "what both have is gone in the other thread");
	return argument;
}

static int n_filters(void)
{
	/* A filter for all threads can be had only if they all have those of the caller, and no others (TSYNC). */
	struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
	struct sock_fprog program = {.len = 1, .filter = code};
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	forbid(SYS_personality, &(unsigned){0xffffffff}, error(EXFULL));
	if (argc > 2 && strcmp(argv[2], "forbids") == 0)
		forbid(SYS_wait4, NULL, error(ENOTNAM));
	if (argc > 2 && strcmp(argv[2], "kills") == 0)
		forbid(SYS_sigaltstack, NULL, SECCOMP_RET_KILL_PROCESS);
	pthread_t worker;
	if (pthread_create(&worker, NULL, work, NULL) != 0)
		victim_die("pthread_create");
	while (!__atomic_load_n(&started, __ATOMIC_SEQ_CST))
		victim_rest();
	forbid(SYS_getpgid, NULL, error(EUCLEAN));
	victim_ready();
	while (!victim_asked())
		victim_rest();
	EXPECT(victim_reaches(&lap, lap + 3), "the other thread stands still");
	EXPECT(syscall(SYS_personality, 0xffffffff) == -1 && errno == EXFULL, "the first filter is gone");
	EXPECT(syscall(SYS_personality, 0) >= 0, "the first filter forbids too much");
	EXPECT(syscall(SYS_getpgid, 0) == -1 && errno == EUCLEAN, "the last filter is gone");
	EXPECT(syscall(SYS_getppid) >= 0, "the main thread has the other thread's filter");
	EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "no_new_privs is gone");
	EXPECT(n_filters() > 0, "the threads' filters are the same");
	end = true;
	if (pthread_join(worker, NULL) != 0)
		victim_fail("the other thread does not end");
	EXPECT(n_filters() == 0, "a filter for all cannot be had: %s", strerror(errno));
	return victim_end();
}
