/* What a debugger is to find in a core: three threads, each at a place of its own, and memory of every kind. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define TIB (1UL << 40)

int answer = 42;
const char *constant = "a constant";
char *heap, *shared, *vast, *file, *nameless;
static volatile int spinning;
static const float eight[8] = {1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5};

__attribute__((noinline)) static void sleep_here(int number)
{
	volatile int local = number * 100;

	while (!spinning)
		usleep(1000);
	while (local)
		pause();
}

__attribute__((noinline)) static void spin_here(int number)
{
	volatile int local = number * 100;

	asm volatile("vmovups %1, %%ymm7\n movl $1, %0\n1: pause\n jmp 1b" : "=m"(spinning) : "m"(eight) : "xmm7");
	local++;
}

static void *sleeper(void *argument)
{
	sleep_here(1);
	return argument;
}

static void *spinner(void *argument)
{
	spin_here(2);
	return argument;
}

__attribute__((noinline)) static void child_reads_the_clock(void)
{
	struct timespec now;

	answer = 43;
	strcpy(shared + PAGE, "written by the child");
	shared[0] = 1;
	for (;;)
		clock_gettime(CLOCK_MONOTONIC, &now);
}

static void *mapped(const char *name, int fd)
{
	char page[PAGE];

	for (int letter = 'A'; letter < 'E'; letter++) {
		memset(page, letter, PAGE);
		page[PAGE - 1] = 0;
		if (write(fd, page, PAGE) != PAGE)
			_exit(1);
	}
	char *found = mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	strcpy(found + 2 * PAGE, name);
	return found;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	volatile char on_stack[32] = "on the stack";

	heap = strcpy(malloc(32), "on the heap");
	shared = mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	vast = mmap(0, TIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	strcpy(vast + TIB / 2, "in the middle of nowhere");
	file = mapped("changed in memory", open(argv[1], O_RDWR | O_CREAT, 0600));
	nameless = mapped("changed on top", memfd_create("nameless", 0));
	if (fork() == 0)
		child_reads_the_clock();
	while (!((volatile char *)shared)[0])
		usleep(1000);
	pthread_create(&threads[0], 0, sleeper, 0);
	pthread_create(&threads[1], 0, spinner, 0);
	sleep_here(argc + (on_stack[0] == 0));
	return 0;
}
