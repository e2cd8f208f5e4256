/*
 * A family whose members have inherited one area from each other, copy-on-write, and have made something of it since:
 * written, emptied, unmapped, protected, mapped anew, grown.  Every member knows what each page of its own must be.
 *
 * The root has changed its area after its children were born; a child has a child of its own; one is another user; one
 * leads a session.  With the argument "adopts" there is one more, whose parent has ended.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 512, BLOCK = 16, BLOCKS = PAGES / BLOCK, WIPED = 8 };
enum { ZERO = 0, GONE = 254, HIDDEN = 255 }; /* otherwise the seed of the page's content */
enum kind { ROOT, READER, WRITER, GRANDCHILD, USER, LEADER, ORPHAN, KINDS };

static const char *const names[KINDS] = {"root", "reader", "writer", "grandchild", "user", "leader", "orphan"};

static struct {
	uint64_t asked, answered[KINDS], pid[KINDS];
	char wrong[KINDS][200];
} *shared;

static unsigned char *area, *wiped, *not_forked, *grown;
static unsigned char must_be[PAGES], grown_with; /* inherited like the area */
static uint64_t counted;

static void set(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static uint64_t get(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static unsigned char byte(size_t page, size_t at, unsigned char seed)
{
	return (unsigned char)(at * 7 + page * 31 + seed * 13 + (at >> 8));
}

static void fill(unsigned char *memory, size_t page, unsigned char seed)
{
	for (size_t at = 0; at < PAGE; at++)
		memory[page * PAGE + at] = byte(page, at, seed);
}

static void write_block(size_t block, unsigned char seed)
{
	for (size_t page = block * BLOCK; page < (block + 1) * BLOCK; page++)
		fill(area, page, must_be[page] = seed);
}

static unsigned char *note_block(size_t block, unsigned char state)
{
	memset(must_be + block * BLOCK, state, BLOCK);
	return area + block * BLOCK * PAGE;
}

/* Eight things that can be done to blocks, to other ones by each member. */
static void live_differently(size_t first, unsigned char seed)
{
	const size_t bytes = BLOCK * PAGE;

	write_block(first, seed);
	MUST(madvise(note_block(first + 1, ZERO), bytes, MADV_DONTNEED));
	memset(note_block(first + 2, ZERO), 0, bytes);
	MUST(munmap(note_block(first + 3, GONE), bytes));
	MUST(mprotect(note_block(first + 4, HIDDEN), bytes, PROT_NONE));
	MUST(mmap(note_block(first + 5, ZERO), bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	write_block(first + 6, seed);
	fill(area, (first + 7) * BLOCK + 3, must_be[(first + 7) * BLOCK + 3] = seed);
}

__attribute__((format(printf, 2, 3))) static void wrong(enum kind kind, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	if (!shared->wrong[kind][0])
		vsnprintf(shared->wrong[kind], sizeof shared->wrong[kind], format, arguments);
	va_end(arguments);
}

static bool is_right(const unsigned char *memory, size_t page, unsigned char state)
{
	for (size_t at = 0; at < PAGE; at++)
		if (memory[page * PAGE + at] != (state == ZERO ? 0 : byte(page, at, state)))
			return false;
	return true;
}

static void look(enum kind kind)
{
	unsigned char there;

	for (size_t page = 0; page < PAGES; page++) {
		bool mapped = mincore(area + page * PAGE, PAGE, &there) == 0;
		if (mapped != (must_be[page] != GONE))
			wrong(kind, "page %zu is %s", page, mapped ? "mapped" : "not mapped");
		else if (must_be[page] == HIDDEN) {
			MUST(mprotect(area + page * PAGE, PAGE, PROT_READ));
			if (!is_right(area, page, 1))
				wrong(kind, "what is hidden in page %zu changed", page);
			MUST(mprotect(area + page * PAGE, PAGE, PROT_NONE));
		} else if (mapped && !is_right(area, page, must_be[page]))
			wrong(kind, "page %zu is not %u", page, must_be[page]);
	}
	for (size_t page = 0; page < WIPED; page++)
		if (!is_right(wiped, page, kind == ROOT ? 5 : ZERO))
			wrong(kind, "page %zu of what a fork wipes", page);
	if (kind == ROOT ? !is_right(not_forked, 0, 6) : mincore(not_forked, PAGE, &there) == 0)
		wrong(kind, "what a fork leaves out");
	if (grown && !is_right(grown, 0, grown_with))
		wrong(kind, "the grown heap");
}

static void work(enum kind kind)
{
	static uint64_t copy;

	if (copy != counted)
		wrong(kind, "counted to %llu and %llu", (unsigned long long)copy, (unsigned long long)counted);
	copy = ++counted;
}

static void grow(enum kind kind)
{
	uintptr_t end = ((uintptr_t)syscall(SYS_brk, 0) + PAGE - 1) / PAGE * PAGE;

	if ((uintptr_t)syscall(SYS_brk, end + 64 * PAGE) != end + 64 * PAGE)
		victim_die("brk");
	grown = (unsigned char *)end;
	fill(grown, 0, grown_with = (unsigned char)(100 + kind));
}

static void live(enum kind kind)
{
	set(&shared->pid[kind], (uint64_t)getpid());
	for (;;) {
		uint64_t asked = get(&shared->asked);
		work(kind);
		if (asked != get(&shared->answered[kind])) {
			look(kind);
			set(&shared->answered[kind], asked);
		}
		victim_rest();
	}
}

static pid_t make(enum kind kind)
{
	pid_t pid = MUST(fork());

	if (pid != 0) {
		while (!get(&shared->pid[kind]))
			victim_rest();
		return pid;
	}
	switch (kind) {
	case WRITER:
		live_differently(0, 2);
		grow(kind);
		make(GRANDCHILD);
		write_block(7, 9);
		break;
	case GRANDCHILD:
		live_differently(16, 3);
		break;
	case USER:
		write_block(30, 4);
		MUST(setresgid(65534, 65534, 65534));
		MUST(setresuid(65534, 65534, 65534));
		break;
	case LEADER:
		MUST(setsid());
		grow(kind);
		break;
	case ORPHAN:
		if (MUST(fork()) != 0)
			_exit(0);
		while (getppid() != (pid_t)get(&shared->pid[ROOT]))
			victim_rest();
		live_differently(8, 7);
		break;
	default:
		break;
	}
	live(kind);
	return 0;
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	bool adopts = argc > 2 && !strcmp(argv[2], "adopts");
	shared = MUST(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	area = MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wiped = MUST(mmap(NULL, WIPED * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	not_forked = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t block = 0; block < BLOCKS; block++)
		write_block(block, 1);
	for (size_t page = 0; page < WIPED; page++)
		fill(wiped, page, 5);
	fill(not_forked, 0, 6);
	MUST(madvise(wiped, WIPED * PAGE, MADV_WIPEONFORK));
	MUST(madvise(not_forked, PAGE, MADV_DONTFORK));
	set(&shared->pid[ROOT], (uint64_t)getpid());
	if (adopts)
		MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	enum kind last = adopts ? ORPHAN : LEADER;
	for (enum kind kind = READER; kind <= LEADER; kind++)
		if (kind != GRANDCHILD)
			make(kind);
	if (adopts)
		MUST(waitpid(make(ORPHAN), NULL, 0));
	live_differently(22, 8);

	victim_ready();
	while (!victim_asked()) {
		work(ROOT);
		victim_rest();
	}
	set(&shared->asked, shared->asked + 1);
	look(ROOT);
	for (enum kind kind = ROOT; kind <= last; kind++) {
		if (kind != ROOT)
			EXPECT(victim_reaches(&shared->answered[kind], shared->asked), "%s is silent", names[kind]);
		EXPECT(!shared->wrong[kind][0], "%s: %s", names[kind], shared->wrong[kind]);
	}
	for (enum kind kind = READER; kind <= last; kind++)
		kill((pid_t)shared->pid[kind], SIGKILL);
	return victim_end();
}
