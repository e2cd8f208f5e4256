/*
 * Shared memory and semaphores that have a name, the one that shm_open(3) gives, or the one that sem_open(3) links to
 * after it has made the file under another; and other files whose name of birth is gone, but that have one left.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define BYTES 12288
#define HELD 3

static char memory_name[64], semaphore_name[64];
static volatile uint64_t count;
static volatile uint64_t *memory;
static int memory_fd, linked_fd;
static const char *linked;
static sem_t *semaphore;

static int published(const char *suffix, const char *text)
{
	char from[4096];

	strcpy(from, victim_path("passing"));
	int fd = MUST(open(from, O_RDWR | O_CREAT | O_EXCL, 0600));
	MUST(ftruncate(fd, 4096));
	MUST(pwrite(fd, text, strlen(text), 0));
	MUST(link(from, victim_path(suffix)));
	MUST(unlink(from));
	return fd;
}

static void make(void)
{
	sprintf(memory_name, "/crd-victim-%d", getpid());
	sprintf(semaphore_name, "/crd-victim-semaphore-%d", getpid());
	memory_fd = MUST(shm_open(memory_name, O_RDWR | O_CREAT | O_EXCL, 0640));
	MUST(ftruncate(memory_fd, BYTES));
	memory = MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0));
	memory[BYTES / sizeof *memory - 1] = 77;
	semaphore = sem_open(semaphore_name, O_CREAT | O_EXCL, 0600, HELD);
	if (semaphore == SEM_FAILED)
		victim_die("sem_open");
	linked_fd = published("linked", "linked");
	int mapped = published("mapped", "mapped");
	linked = MUST(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, mapped, 0));
	close(mapped);
}

static bool leads_to(const char *path, ino_t inode)
{
	struct stat found;
	return stat(path, &found) == 0 && found.st_ino == inode;
}

static void check_memory(void)
{
	struct stat file = {0};
	uint64_t read_back = 0;
	char path[128];

	sprintf(path, "/dev/shm%s", memory_name);
	EXPECT(memory[0] == count, "the shared memory counts to %llu, the task to %llu", (unsigned long long)memory[0],
	       (unsigned long long)count);
	EXPECT(memory[BYTES / sizeof *memory - 1] == 77, "its end is lost");
	EXPECT(fstat(memory_fd, &file) == 0 && file.st_size == BYTES && (file.st_mode & 07777) == 0640 && file.st_nlink == 1,
	       "it has %lld bytes, mode %o, %d names", (long long)file.st_size, file.st_mode, (int)file.st_nlink);
	EXPECT(leads_to(path, file.st_ino), "its name leads elsewhere");
	memory[1] = 4711;
	EXPECT(pread(memory_fd, &read_back, 8, 8) == 8 && read_back == 4711, "descriptor and mapping are of two files");
	EXPECT(shm_unlink(memory_name) == 0, "its name cannot be taken away");
}

static void check_semaphore(void)
{
	char path[128];
	int value = -1;

	sprintf(path, "/dev/shm/sem.%s", semaphore_name + 1); /* glibc's */
	int fd = open(path, O_RDWR);
	if (fd == -1) { /* musl's */
		sprintf(path, "/dev/shm%s", semaphore_name);
		fd = open(path, O_RDWR);
	}
	EXPECT(fd >= 0, "the semaphore has lost its name");
	volatile int *other = mmap(NULL, sizeof(sem_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (other == MAP_FAILED)
		return;
	EXPECT(sem_getvalue(semaphore, &value) == 0 && value == HELD && *other == HELD, "it is at %d, by its name at %d",
	       value, *other);
	EXPECT(sem_post(semaphore) == 0 && *other == HELD + 1, "its name leads elsewhere");
	EXPECT(sem_unlink(semaphore_name) == 0, "its name cannot be taken away");
}

static void check_links(void)
{
	struct stat file = {0};
	char text[7] = "";

	EXPECT(fstat(linked_fd, &file) == 0 && leads_to(victim_path("linked"), file.st_ino), "the file is another one");
	EXPECT(pread(linked_fd, text, 6, 0) == 6 && !strcmp(text, "linked"), "it has the text %s", text);
	EXPECT(!memcmp(linked, "mapped", 6), "the mapped file has another text");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make();
	victim_ready();
	while (!victim_asked()) {
		memory[0] = ++count;
		victim_rest();
	}
	check_memory();
	check_semaphore();
	check_links();
	return victim_end();
}
