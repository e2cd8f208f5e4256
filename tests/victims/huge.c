/*
 * Huge pages of 2 MiB: private and shared ones without a name, and a memory file, mapped and read by its descriptor.  A child
 * has its own copy of the private ones, and shares the others.  Every page is written to all the time.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HUGE = 2 << 20, PAGES = 3, UNTOUCHED = 2, WORDS = HUGE / sizeof(uint64_t) };

struct counts {
	volatile uint64_t parent, child, end;
};

static uint64_t *private_pages, *shared_page, *file_page;
static int file;

static uint64_t *map(size_t length, int flags, int fd)
{
	uint64_t *found = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, flags, fd, 0));
	EXPECT((uintptr_t)found % HUGE == 0, "no huge page");
	return found;
}

static void make(void)
{
	private_pages = map(PAGES * HUGE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
	shared_page = map(HUGE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1);
	file = MUST(memfd_create("huge file", MFD_HUGETLB | MFD_ALLOW_SEALING));
	MUST(ftruncate(file, HUGE));
	file_page = map(HUGE, MAP_SHARED, file);
	for (unsigned i = 1; i < WORDS; i += 511)
		private_pages[i] = shared_page[i] = file_page[i] = i;
	private_pages[WORDS + 7] = 7;
}

/* Counts in the first word of each page; the pattern behind it must stay. */
static void count(volatile uint64_t *shared)
{
	++*shared;
	EXPECT(private_pages[0]++ == private_pages[WORDS]++, "the pages of its own differ");
}

static void check(void)
{
	for (unsigned i = 1; i < WORDS; i += 511)
		EXPECT(private_pages[i] == i && shared_page[i] == i && file_page[i] == i, "word %u changed", i);
	EXPECT(private_pages[WORDS + 7] == 7 && private_pages[UNTOUCHED * WORDS + 9] == 0, "a page changed");
	uint64_t word = 0;
	EXPECT(pread(file, &word, sizeof(word), 512 * sizeof(word)) == sizeof(word) && word == 512, "the file reads %llu",
	       (unsigned long long)word);
	EXPECT(fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "the file takes no seal");
	private_pages[UNTOUCHED * WORDS] = 1;
}

static int run_child(struct counts *counts)
{
	MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
	while (!counts->end) {
		count(&counts->child);
		victim_rest();
	}
	check();
	return victim_end();
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make();
	struct counts *counts = (struct counts *)&shared_page[2];
	pid_t child = MUST(fork());
	if (child == 0)
		return run_child(counts);
	while (counts->child == 0)
		victim_rest();
	victim_ready();
	while (!victim_asked()) {
		count(&counts->parent);
		victim_rest();
	}
	uint64_t before = counts->child;
	EXPECT(victim_reaches(&counts->child, before + 3), "the child counts no more");
	counts->end = 1;
	int status = 0;
	EXPECT(waitpid(child, &status, 0) == child && status == 0, "the child ends with %x", status);
	check();
	return victim_end();
}
