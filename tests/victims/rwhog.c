/*
 * Writes to random pages of ARGUMENT MiB (default 64), at most ARGUMENT2 pages a second (default 0: as many as it can),
 * checks what it wrote there before, and measures the longest time it was not allowed to run.  ARGUMENT3 more threads
 * (default 0) are busy with nothing.
 *
 * When PREFIX.mark appears it writes to PREFIX.gap the longest gap since the last mark, in nanoseconds, and how often it
 * has looked at the clock, which is all that it does beside writing; then it removes the mark.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE_BYTES = 4096, PAGE_WORDS = PAGE_BYTES / 8, POLL_NS = 2000000 };

static uint64_t longest_gap, rounds;

static uint64_t next_random(void)
{
	static uint64_t state = 0x2545f4914f6cdd1d;
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* First and last word of a page hold its number and how often it was written. */
static void write_page(uint64_t *page, uint64_t number, uint32_t *writes)
{
	uint64_t expected = number << 32 | *writes;
	EXPECT(page[0] == expected && page[PAGE_WORDS - 1] == expected, "page %llu is not what was written",
	       (unsigned long long)number);
	page[0] = page[PAGE_WORDS - 1] = number << 32 | ++*writes;
}

static void answer_mark(void)
{
	if (access(victim_path("mark"), F_OK) != 0)
		return;
	char text[64];
	snprintf(text, sizeof(text), "%llu %llu\n", (unsigned long long)longest_gap,
		 (unsigned long long)rounds);
	victim_write("gap", text);
	unlink(victim_path("mark"));
	longest_gap = 0;
}

static void *spin(void *count)
{
	for (volatile uint64_t *mine = count;; ++*mine)
		;
	return NULL;
}

static void start_spinning(unsigned long threads)
{
	static uint64_t counts[256];
	while (threads-- > 0) {
		pthread_t thread;
		MUST(-pthread_create(&thread, NULL, spin, &counts[threads % 256]));
	}
}

static uint64_t note_time(uint64_t last)
{
	uint64_t now = victim_now();
	rounds++;
	if (now - last > longest_gap)
		longest_gap = now - last;
	return now;
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	size_t pages = (argc > 2 ? strtoul(argv[2], NULL, 10) : 64) << 20 >> 12;
	uint64_t rate = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
	if (pages == 0)
		return 2;
	uint32_t *writes = MUST(mmap(NULL, pages * sizeof(*writes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	uint64_t *memory = MUST(mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t page = 0; page < pages; page++)
		memory[page * PAGE_WORDS] = memory[page * PAGE_WORDS + PAGE_WORDS - 1] = (uint64_t)page << 32;
	start_spinning(argc > 4 ? strtoul(argv[4], NULL, 10) : 0);
	victim_ready();
	uint64_t now = victim_now(), start = now, poll = now, done = 0;
	while (true) {
		if (rate == 0 || done * 1000000000 / rate <= now - start) {
			uint64_t page = next_random() % pages;
			write_page(memory + page * PAGE_WORDS, page, &writes[page]);
			done++;
		}
		now = note_time(now);
		if (now - poll < POLL_NS)
			continue;
		if (victim_asked())
			break;
		answer_mark();
		poll = now = victim_now();
	}
	for (size_t page = 0; page < pages; page++)
		write_page(memory + page * PAGE_WORDS, page, &writes[page]);
	return victim_end();
}
