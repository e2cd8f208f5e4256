/*
 * A family: children in a group and in a session of their own, one that shares files and directory, one with an exit
 * signal of its own, one behind pipes, two stopped ones (of one of which the root knows already), and zombies by code and
 * by signal.  With the argument "adopts" the root adopts orphans: one whose session's leader lives, one whose has died.
 *
 * Every child that runs looks at itself when it is told to; the root looks at all of them, and at what only a parent sees.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum kind {
	PLAIN, GROUP, MEMBER, SESSION, FILES, SIGNALLED, PIPES, LEADER, /* these run */
	ORPHAN, LEADERLESS,                                            /* these, too, if the root adopts them */
	STOPPED, REPORTED, ZOMBIE, KILLED, ENDED_LEADER, KINDS
};

static const char *const names[KINDS] = {"plain", "group", "member", "session", "files", "signalled", "pipes", "leader",
					 "orphan", "leaderless", "stopped", "reported", "zombie", "killed",
					 "ended leader"};

struct one {
	uint64_t pid, parent, group, session; /* as it was when it was made; pid 0: it was not */
	uint64_t answered, wrong;
};

/* MAP_SHARED | MAP_ANONYMOUS: all of them see it. */
static struct {
	uint64_t asked;
	struct one all[KINDS];
} *shared;

static int file, to_child[2], from_child[2];
static volatile sig_atomic_t told;

static void on_child(int signal)
{
	(void)signal;
	told++;
}

static void set(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static uint64_t get(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static struct one self(void)
{
	return (struct one){.pid = (uint64_t)getpid(), .parent = (uint64_t)getppid(), .group = (uint64_t)getpgrp(),
			    .session = (uint64_t)getsid(0)};
}

/* The rest of a child's life. */
static void live(enum kind kind)
{
	struct one *me = &shared->all[kind], then = self();
	char byte;

	me->parent = then.parent, me->group = then.group, me->session = then.session;
	set(&me->pid, then.pid);
	for (;;) {
		uint64_t asked = get(&shared->asked);
		if (asked != me->answered) {
			struct one now = self();
			me->wrong += memcmp(&now, &then, sizeof now) != 0;
			set(&me->answered, asked);
		}
		if (kind == PIPES && read(to_child[0], &byte, 1) == 1)
			MUST(write(from_child[1], "!", 1));
		victim_rest();
	}
}

/* For ORPHAN and LEADERLESS: lives as soon as its parent has gone. */
static void live_as_orphan(enum kind kind)
{
	pid_t parent = getppid();

	if (MUST(fork()) != 0)
		_exit(0);
	while (getppid() != (pid_t)get(&shared->all[PLAIN].parent))
		victim_rest();
	(void)parent;
	live(kind);
}

static void be(enum kind kind, bool adopted)
{
	switch (kind) {
	case GROUP:
		MUST(setpgid(0, 0));
		break;
	case MEMBER:
		MUST(setpgid(0, (pid_t)get(&shared->all[GROUP].pid)));
		break;
	case SESSION:
		MUST(setsid());
		break;
	case FILES:
		MUST(chdir(victim_path("place")));
		MUST(dup2(file, 200));
		break;
	case PIPES:
		MUST(lseek(file, 3, SEEK_SET));
		MUST(write(from_child[1], "abc", 3));
		MUST(fcntl(to_child[0], F_SETFL, O_NONBLOCK));
		break;
	case LEADER:
		MUST(setsid());
		if (adopted && MUST(fork()) == 0)
			live_as_orphan(ORPHAN);
		break;
	case STOPPED:
	case REPORTED:
		MUST(kill(getpid(), SIGSTOP)); /* not raise(3): after clone(2) it may have a stale tid */
		break;
	case ZOMBIE:
		_exit(7);
	case KILLED:
		kill(getpid(), SIGKILL);
		break;
	case ENDED_LEADER:
		MUST(setsid());
		_exit(3);
	case LEADERLESS: /* made by a leader that ends */
		MUST(setsid());
		live_as_orphan(LEADERLESS);
		break;
	default:
		break;
	}
	live(kind);
}

static pid_t make(enum kind kind, bool adopted)
{
	unsigned long flags = kind == SIGNALLED ? SIGUSR1 : SIGCHLD | (kind == FILES ? CLONE_FILES | CLONE_FS : 0);
	pid_t pid = MUST((pid_t)syscall(SYS_clone, flags, 0, 0, 0, 0));

	if (pid == 0)
		be(kind, adopted);
	if (kind >= STOPPED) {
		struct one *one = &shared->all[kind];
		one->parent = (uint64_t)getpid();
		one->pid = (uint64_t)pid;
	} else if (kind != LEADERLESS) {
		while (!get(&shared->all[kind].pid))
			victim_rest();
	}
	return pid;
}

static char state_of(enum kind kind)
{
	char path[64], text[512];

	snprintf(path, sizeof path, "/proc/%d/stat", (int)shared->all[kind].pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	ssize_t length = read(fd, text, sizeof text - 1);
	close(fd);
	text[length < 0 ? 0 : length] = 0;
	const char *end = strrchr(text, ')');
	return end ? end[2] : 0;
}

static void await_state(enum kind kind, char state)
{
	while (state_of(kind) != state)
		victim_rest();
	shared->all[kind].group = (uint64_t)getpgid((pid_t)shared->all[kind].pid);
	shared->all[kind].session = (uint64_t)getsid((pid_t)shared->all[kind].pid);
}

static void expect_status(enum kind kind, int options, int expected)
{
	int status = 0;
	pid_t found = waitpid((pid_t)shared->all[kind].pid, &status, options | WNOHANG);

	EXPECT(found == (pid_t)shared->all[kind].pid && status == expected, "%s: waitpid gives %d, status 0x%x",
	       names[kind], found, (unsigned)status);
}

static void look_at_all(void)
{
	set(&shared->asked, shared->asked + 1);
	for (enum kind kind = 0; kind < KINDS; kind++) {
		const struct one *one = &shared->all[kind];
		if (!one->pid)
			continue;
		EXPECT(getpgid((pid_t)one->pid) == (pid_t)one->group, "%s: group", names[kind]);
		EXPECT(getsid((pid_t)one->pid) == (pid_t)one->session, "%s: session", names[kind]);
		if (kind < STOPPED) {
			EXPECT(victim_reaches(&one->answered, shared->asked), "%s is silent", names[kind]);
			EXPECT(!one->wrong, "%s has other numbers", names[kind]);
		}
	}
}

static void look_at_what_a_parent_sees(void)
{
	int status;

	EXPECT(told == 0, "told %d times of a child", (int)told);
	for (enum kind kind = ZOMBIE; kind < KINDS; kind++)
		EXPECT(state_of(kind) == 'Z', "%s is no zombie", names[kind]);
	expect_status(ZOMBIE, 0, 7 << 8);
	expect_status(KILLED, 0, SIGKILL);
	expect_status(ENDED_LEADER, 0, 3 << 8);
	EXPECT(state_of(STOPPED) == 'T' && state_of(REPORTED) == 'T', "somebody is not stopped");
	expect_status(STOPPED, WUNTRACED, SIGSTOP << 8 | 0x7f);
	EXPECT(waitpid((pid_t)shared->all[REPORTED].pid, &status, WUNTRACED | WNOHANG) == 0, "a stop is told twice");
	pid_t signalled = (pid_t)shared->all[SIGNALLED].pid;
	EXPECT(waitpid(signalled, &status, WNOHANG) == -1, "the exit signal has become SIGCHLD");
	EXPECT(waitpid(signalled, &status, WNOHANG | __WCLONE) == 0, "the child with an exit signal is none");
}

static void look_at_what_is_shared(void)
{
	char text[8] = "", directory[4096] = "";

	EXPECT(lseek(file, 0, SEEK_CUR) == 3, "the position is %d", (int)lseek(file, 0, SEEK_CUR));
	MUST(write(to_child[1], "?", 1));
	for (size_t got = 0; got < 4;)
		got += (size_t)MUST(read(from_child[0], text + got, sizeof text - 1 - got));
	EXPECT(!strcmp(text, "abc!"), "the pipes give %s", text);
	EXPECT(getcwd(directory, sizeof directory) && !strcmp(directory, victim_path("place")), "in %s", directory);
	EXPECT(fcntl(200, F_GETFD) >= 0, "the files are not shared");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	bool adopts = argc > 2 && !strcmp(argv[2], "adopts");
	shared = MUST(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	file = MUST(open(victim_path("data"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	MUST(mkdir(victim_path("place"), 0700));
	MUST(pipe(to_child));
	MUST(pipe(from_child));
	if (adopts)
		MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	for (enum kind kind = 0; kind < KINDS; kind++)
		if (kind == LEADERLESS && adopts)
			MUST(waitpid(make(kind, adopts), NULL, 0));
		else if (kind != ORPHAN && kind != LEADERLESS)
			make(kind, adopts);
	while (adopts && !(get(&shared->all[ORPHAN].pid) && get(&shared->all[LEADERLESS].pid)))
		victim_rest();
	await_state(STOPPED, 'T');
	await_state(REPORTED, 'T');
	for (enum kind kind = ZOMBIE; kind < KINDS; kind++)
		await_state(kind, 'Z');
	MUST(waitpid((pid_t)shared->all[REPORTED].pid, &(int){0}, WUNTRACED));
	MUST(sigaction(SIGCHLD, &(struct sigaction){.sa_handler = on_child, .sa_flags = SA_RESTART}, NULL));

	victim_ready();
	while (!victim_asked())
		victim_rest();
	look_at_all();
	look_at_what_a_parent_sees();
	look_at_what_is_shared();
	signal(SIGUSR1, SIG_IGN);
	for (enum kind kind = 0; kind < ZOMBIE; kind++)
		if (shared->all[kind].pid)
			kill((pid_t)shared->all[kind].pid, SIGKILL);
	return victim_end();
}
