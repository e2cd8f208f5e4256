/*
 * Memory of every kind that a single process has without the help of others; see `regions` below.  What changes is
 * compared all the time, the rest when asked; then stack and heap must still grow, and what was forbidden still is.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 64, BYTES = PAGES * PAGE, SPARSE_BYTES = 256 << 20, STACK_BYTES = 2 << 20 };

static unsigned char *guard_regions[3]; /* of private memory, a private file, a shared one; NULL: not to be had */
static unsigned char *anonymous, *hidden, *read_only, *private_file, *shared_file, *shared_memory, *sparse, *guarded;
static int (*generated)(void);
static uintptr_t initial_break;
static uint64_t changes;

static void fill(unsigned char *memory, size_t bytes, unsigned seed)
{
	for (size_t index = 0; index < bytes; index += 64)
		memory[index] = (unsigned char)(index / 64 * 31 + index / PAGE * 17 + seed);
}

static bool is_filled(const unsigned char *memory, size_t bytes, unsigned seed)
{
	for (size_t index = 0; index < bytes; index += 64)
		if (memory[index] != (unsigned char)(index / 64 * 31 + index / PAGE * 17 + seed))
			return false;
	return true;
}

static unsigned char *map(size_t bytes, int flags, int fd)
{
	return MUST(mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0));
}

static int new_file(const char *suffix, unsigned seed)
{
	static unsigned char content[BYTES];
	fill(content, BYTES, seed);
	int fd = MUST(open(victim_path(suffix), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
	if (write(fd, content, BYTES) != BYTES)
		victim_die("write");
	return fd;
}

static void map_files(void)
{
	int fd = new_file("private", 3);
	private_file = map(BYTES, MAP_PRIVATE, fd);
	close(fd);
	for (size_t page = 0; page < PAGES; page += 2)
		fill(private_file + page * PAGE, PAGE, 4);
	fd = new_file("shared", 5);
	shared_file = map(BYTES, MAP_SHARED, fd);
	close(fd);
	fill(shared_file, BYTES, 6);
}

/* Guard regions (MADV_GUARD_INSTALL, Linux 6.13; of files 6.15) on the second of four pages. */
static void map_guard_regions(void)
{
	int fd = new_file("regions", 11);
	unsigned char *const places[] = {map(4 * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1), map(4 * PAGE, MAP_PRIVATE, fd),
					 map(4 * PAGE, MAP_SHARED, fd)};
	close(fd);
	fill(places[0], 4 * PAGE, 11);
	for (size_t index = 0; index < ARRAY_LENGTH(places); index++)
		if (madvise(places[index] + PAGE, PAGE, 102) == 0)
			guard_regions[index] = places[index];
}

static void map_code(void)
{
	static const unsigned char code[] = {0xb8, 0x2a, 0, 0, 0, 0xc3}; /* mov $42, %eax; ret */
	unsigned char *memory = map(PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memcpy(memory, code, sizeof(code));
	MUST(mprotect(memory, PAGE, PROT_READ | PROT_EXEC));
	memcpy(&generated, &memory, sizeof(generated));
}

static void map_all(void)
{
	anonymous = map(BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	fill(anonymous, BYTES, 1);
	hidden = map(BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	fill(hidden, BYTES, 2);
	MUST(mprotect(hidden, BYTES, PROT_NONE));
	read_only = map(BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	fill(read_only, BYTES, 7);
	MUST(mprotect(read_only, BYTES, PROT_READ));
	shared_memory = map(BYTES, MAP_SHARED | MAP_ANONYMOUS, -1);
	fill(shared_memory, BYTES, 8);
	sparse = map(SPARSE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	for (size_t third = 0; third < 3; third++)
		fill(sparse + third * (SPARSE_BYTES / 3 / PAGE) * PAGE, PAGE, 9);
	guarded = map(3 * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	MUST(mprotect(guarded, PAGE, PROT_NONE));
	MUST(mprotect(guarded + 2 * PAGE, PAGE, PROT_NONE));
	map_files();
	map_guard_regions();
	map_code();
	initial_break = (uintptr_t)syscall(SYS_brk, 0);
	if ((uintptr_t)syscall(SYS_brk, initial_break + BYTES) != initial_break + BYTES)
		victim_die("brk");
	fill((unsigned char *)initial_break, BYTES, 10);
}

/* The same number goes to four kinds of memory: they must agree for ever. */
static void change(void)
{
	static uint64_t *places[4];
	static uint64_t on_data;
	if (changes == 0) {
		places[0] = (uint64_t *)(anonymous + 8);
		places[1] = (uint64_t *)(shared_memory + 8);
		places[2] = (uint64_t *)(initial_break + 8);
		places[3] = &on_data;
		for (size_t index = 0; index < ARRAY_LENGTH(places); index++)
			*places[index] = 0;
	}
	for (size_t index = 0; index < ARRAY_LENGTH(places); index++)
		EXPECT(*places[index] == changes, "memory %zu has %llu where %llu was written", index,
		       (unsigned long long)*places[index], (unsigned long long)changes);
	changes++;
	for (size_t index = 0; index < ARRAY_LENGTH(places); index++)
		*places[index] = changes;
}

static sigjmp_buf after_fault;

static void on_fault(int signal)
{
	siglongjmp(after_fault, signal);
}

static bool faults(volatile unsigned char *address, bool writing)
{
	if (sigsetjmp(after_fault, 1) != 0)
		return true;
	if (writing)
		*address = 1;
	else
		(void)*address;
	return false;
}

static void check_forbidden(void)
{
	struct sigaction action = {.sa_handler = on_fault};
	sigaction(SIGSEGV, &action, NULL);
	EXPECT(faults(hidden, false), "PROT_NONE memory can be read");
	EXPECT(faults(guarded, false) && faults(guarded + 2 * PAGE, true), "a guard page can be used");
	EXPECT(!faults(guarded + PAGE, true), "memory between guard pages cannot be used");
	EXPECT(faults(read_only, true), "read-only memory can be written");
	MUST(mprotect(hidden, BYTES, PROT_READ));
	EXPECT(is_filled(hidden, BYTES, 2), "what was behind PROT_NONE changed");
}

static void check_guard_regions(void)
{
	static unsigned char content[4 * PAGE];
	fill(content, sizeof content, 11);
	for (size_t index = 0; index < ARRAY_LENGTH(guard_regions); index++) {
		unsigned char *place = guard_regions[index];
		if (!place)
			continue;
		EXPECT(faults(place + PAGE, false) && faults(place + PAGE, true), "guard region %zu can be used", index);
		EXPECT(!faults(place, false) && !memcmp(place, content, PAGE), "the page before guard region %zu", index);
		EXPECT(!memcmp(place + 2 * PAGE, content + 2 * PAGE, 2 * PAGE), "the pages behind guard region %zu", index);
	}
}

static void check_files(void)
{
	for (size_t page = 0; page < PAGES; page++) {
		if (page % 2 == 0)
			EXPECT(is_filled(private_file + page * PAGE, PAGE, 4), "modified private page %zu changed", page);
		else
			EXPECT(private_file[page * PAGE] == (unsigned char)(page * 64 * 31 + page * 17 + 3),
			       "unmodified private page %zu changed", page);
	}
	static unsigned char content[BYTES];
	int fd = MUST(open(victim_path("shared"), O_RDONLY | O_CLOEXEC));
	shared_file[64] = 0xee;
	EXPECT(read(fd, content, BYTES) == BYTES && content[64] == 0xee, "a shared mapping does not reach its file");
	shared_file[64] = (unsigned char)(31 + 6);
	EXPECT(is_filled(shared_file, BYTES, 6), "the shared file mapping changed");
	close(fd);
	fd = MUST(open(victim_path("private"), O_RDONLY | O_CLOEXEC));
	EXPECT(read(fd, content, BYTES) == BYTES && is_filled(content, BYTES, 3), "the file of a private mapping changed");
	close(fd);
}

static void check_sparse(void)
{
	for (size_t third = 0; third < 3; third++) {
		unsigned char *page = sparse + third * (SPARSE_BYTES / 3 / PAGE) * PAGE;
		EXPECT(is_filled(page, PAGE, 9), "page %zu of the sparse memory changed", third);
		EXPECT(page[PAGE] == 0 && page[PAGE + 2048] == 0, "memory that was never written is not zero");
	}
}

/* Deeper than anything before: the kernel has to let the stack grow.  Sums up what is in the frames. */
__attribute__((noinline)) static unsigned dig(size_t bytes)
{
	volatile unsigned char frame[PAGE];
	for (size_t index = 0; index < sizeof(frame); index += 512)
		frame[index] = 3;
	unsigned below = bytes > sizeof(frame) ? dig(bytes - sizeof(frame)) : 0;
	return below + frame[512];
}

static void check_growth(void)
{
	EXPECT(dig(STACK_BYTES) == 3 * STACK_BYTES / PAGE, "the stack does not hold what was written");
	EXPECT((uintptr_t)syscall(SYS_brk, 0) == initial_break + BYTES, "the program break moved");
	uintptr_t grown = initial_break + 16 * BYTES;
	EXPECT((uintptr_t)syscall(SYS_brk, grown) == grown, "the heap does not grow");
	EXPECT(((unsigned char *)initial_break)[2 * BYTES] == 0, "new heap is not zero");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	map_all();
	for (int index = 0; index < 3; index++)
		change();
	victim_ready();
	while (!victim_asked()) {
		change();
		victim_rest();
	}
	for (size_t index = 8; index < 16; index++) /* what change() counts in */
		anonymous[index] = shared_memory[index] = ((unsigned char *)initial_break)[index] = 0;
	EXPECT(is_filled(anonymous, BYTES, 1), "anonymous memory changed");
	EXPECT(is_filled(read_only, BYTES, 7), "read-only memory changed");
	EXPECT(is_filled(shared_memory, BYTES, 8), "shared memory changed");
	EXPECT(is_filled((unsigned char *)initial_break, BYTES, 10), "the heap changed");
	EXPECT(generated() == 42, "generated code changed");
	check_forbidden();
	check_guard_regions();
	check_files();
	check_sparse();
	check_growth();
	return victim_end();
}
