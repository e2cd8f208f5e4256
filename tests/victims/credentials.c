/*
 * Who a process is and what it may: started as root it becomes another user with a few capabilities left, other limits
 * and another place in the scheduler, with a thread that differs again.  Both write down all that they can find out
 * about themselves, and compare it with what they find when asked.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { USER = 4201, GROUP = 4301, FACTS_BYTES = 16384, IOPRIO_WHO_PROCESS = 1, IOPRIO_BEST_EFFORT_6 = 2 << 13 | 6 };
#define BIT(number) (1ull << (number))

static const uint64_t permitted = BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_SYS_NICE), effective = BIT(CAP_NET_BIND_SERVICE);

struct facts {
	size_t length;
	char text[FACTS_BYTES];
};

static void note(struct facts *facts, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void note(struct facts *facts, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int count = vsnprintf(facts->text + facts->length, sizeof(facts->text) - facts->length, format, arguments);
	va_end(arguments);
	facts->length += (size_t)count;
	if (facts->length >= sizeof(facts->text))
		victim_die("too many facts");
}

/* Adds the lines of a file in /proc, where the kernel has it, that begin with one of the words; all if there are none. */
static void note_file(struct facts *facts, const char *path, const char *const *words)
{
	FILE *file = fopen(path, "r");
	if (file == NULL && errno != ENOENT)
		victim_die(path);
	if (file == NULL)
		return;
	char line[512];
	while (fgets(line, sizeof(line), file) != NULL) {
		bool wanted = words == NULL;
		for (const char *const *word = words; !wanted && *word != NULL; word++)
			wanted = strncmp(line, *word, strlen(*word)) == 0;
		if (wanted)
			note(facts, "%s: %s", path, line);
	}
	fclose(file);
}

static void note_scheduling(struct facts *facts)
{
	cpu_set_t cpus;
	struct sched_param parameter;
	sched_getparam(0, &parameter);
	sched_getaffinity(0, sizeof(cpus), &cpus);
	note(facts, "policy: %d\npriority: %d\nCPUs: %d first %d\n", sched_getscheduler(0), parameter.sched_priority,
	     CPU_COUNT(&cpus), CPU_ISSET(0, &cpus));
	errno = 0;
	note(facts, "nice: %d\n", getpriority(PRIO_PROCESS, 0));
	note(facts, "io priority: %ld\n", syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0));
	note(facts, "timer slack: %d\n", prctl(PR_GET_TIMERSLACK));
}

static void note_all(struct facts *facts)
{
	static const char *const status[] = {"Name", "Umask", "Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:", NULL};
	facts->length = 0;
	note_file(facts, "/proc/thread-self/status", status);
	note_file(facts, "/proc/self/limits", NULL);
	note_file(facts, "/proc/self/oom_score_adj", NULL);
	note_file(facts, "/proc/self/coredump_filter", NULL);
	note_file(facts, "/proc/self/loginuid", NULL);
	note_file(facts, "/proc/self/cmdline", NULL);
	note_scheduling(facts);
	note(facts, "personality: %x\n", (unsigned)personality(0xffffffff));
	note(facts, "secure bits: %x\n", (unsigned)prctl(PR_GET_SECUREBITS));
	note(facts, "no new privileges: %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	note(facts, "dumpable: %d\n", prctl(PR_GET_DUMPABLE));
	note(facts, "huge pages disabled: %d\n", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	note(facts, "pid: %d, tid: %d\n", getpid(), victim_tid());
	note(facts, "process group is own: %d, session: %d\n", getpgrp() == getpid(), getsid(0) == getpid());
}

/* Names the first line that differs. */
static void compare(const struct facts *before, const struct facts *now, const char *who)
{
	if (strcmp(before->text, now->text) == 0)
		return;
	const char *old = before->text, *new = now->text;
	while (*old != '\0' && strcspn(old, "\n") == strcspn(new, "\n") && strncmp(old, new, strcspn(old, "\n")) == 0) {
		old += strcspn(old, "\n") + 1;
		new += strcspn(new, "\n") + 1;
	}
	victim_fail("%s was \"%.*s\", is \"%.*s\"", who, (int)strcspn(old, "\n"), old, (int)strcspn(new, "\n"), new);
}

static void set_capabilities(uint64_t effective_set, uint64_t permitted_set, uint64_t inheritable_set)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	for (int half = 0; half < 2; half++)
		data[half] = (struct __user_cap_data_struct){
			.effective = (uint32_t)(effective_set >> 32 * half),
			.permitted = (uint32_t)(permitted_set >> 32 * half),
			.inheritable = (uint32_t)(inheritable_set >> 32 * half),
		};
	MUST(syscall(SYS_capset, &header, data));
}

static void write_file(const char *path, const char *text)
{
	int fd = MUST(open(path, O_WRONLY | O_CLOEXEC));
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		victim_die(path);
	close(fd);
}

static void limit(int resource, rlim_t soft, rlim_t hard)
{
	MUST(setrlimit((__rlimit_resource_t)resource, &(struct rlimit){soft, hard}));
}

static void set_attributes(void)
{
	limit(RLIMIT_NOFILE, 400, 500);
	limit(RLIMIT_CORE, 0, 1 << 20);
	limit(RLIMIT_STACK, 4 << 20, 64 << 20);
	limit(RLIMIT_SIGPENDING, 100, 200);
	limit(RLIMIT_NPROC, 3000, 3000);
	limit(RLIMIT_MEMLOCK, 4096, 8192);
	write_file("/proc/self/oom_score_adj", "300");
	write_file("/proc/self/coredump_filter", "0x7f");
	cpu_set_t first;
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	MUST(sched_setaffinity(0, sizeof(first), &first));
	MUST(sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0}));
	MUST(setpriority(PRIO_PROCESS, 0, 5));
	MUST(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_BEST_EFFORT_6));
	MUST(prctl(PR_SET_TIMERSLACK, 123456));
	MUST(personality(ADDR_NO_RANDOMIZE));
	MUST(prctl(PR_SET_NAME, "cred (victim) \n"));
	umask(037);
}

static void become_user(void)
{
	MUST(fchown(victim_directory(), USER, GROUP));
	MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE));
	MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
	MUST(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_NOROOT));
	gid_t groups[] = {GROUP + 5, GROUP + 6, GROUP + 7};
	MUST(setgroups(ARRAY_LENGTH(groups), groups));
	MUST(setresgid(GROUP, GROUP + 1, GROUP + 2));
	MUST(setresuid(USER, USER, USER + 2));
	set_capabilities(effective, permitted, effective);
	MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static struct facts before[2], now[2];
static volatile uint64_t thread_state;

/* Differs in what threads can differ in. */
static void *differ(void *argument)
{
	MUST(setpriority(PRIO_PROCESS, (id_t)victim_tid(), 9));
	MUST(prctl(PR_SET_TIMERSLACK, 777));
	MUST(prctl(PR_SET_NAME, "other"));
	MUST(sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0}));
	set_capabilities(0, 0, 0);
	note_all(&before[1]);
	thread_state = 1;
	while (thread_state == 1)
		victim_rest();
	note_all(&now[1]);
	compare(&before[1], &now[1], "the thread");
	return argument;
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	bool dumpable = argc > 2 && strcmp(argv[2], "dumpable") == 0;
	set_attributes();
	become_user();
	MUST(prctl(PR_SET_DUMPABLE, dumpable));
	pthread_t thread;
	if (pthread_create(&thread, NULL, differ, NULL) != 0)
		victim_die("pthread_create");
	victim_reaches(&thread_state, 1);
	note_all(&before[0]);
	victim_ready();
	while (!victim_asked())
		victim_rest();
	note_all(&now[0]);
	compare(&before[0], &now[0], "the process");
	thread_state = 2;
	pthread_join(thread, NULL);
	return victim_end();
}
