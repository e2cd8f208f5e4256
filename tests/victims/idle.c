/*
 * Nothing but ARGUMENT MiB of memory with known content (default none): the smallest target, and a large one at rest.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <stdlib.h>
#include <sys/mman.h>

static uint64_t word_at(size_t index)
{
	return (index + 1) * 0x9e3779b97f4a7c15;
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	size_t words = (argc > 2 ? strtoul(argv[2], NULL, 10) << 20 : 0) / sizeof(uint64_t);
	uint64_t *ballast = NULL;
	if (words > 0)
		ballast = MUST(mmap(NULL, words * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t index = 0; index < words; index++)
		ballast[index] = word_at(index);
	victim_ready();
	while (!victim_asked())
		victim_rest();
	for (size_t index = 0; index < words; index++)
		if (ballast[index] != word_at(index)) {
			victim_fail("word %zu of the memory changed", index);
			break;
		}
	return victim_end();
}
