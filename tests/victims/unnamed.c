/*
 * Files that no name leads to: memory files, sealed and mapped; deleted files with holes; one without any name that may
 * still get one; a renamed and a replaced one; a deleted directory, and a deleted working directory.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 5, ODD = 3 * PAGE + 123, FAR = 64 << 20, OFFSET = 77, HOLE_BLOCKS = 4096 };
#define MEMORY_NAME "a name (with) blanks"

static int memory, memory_again, memory_copy, sealed, deleted, read_only, temporary, renamed, replaced, directory;
static volatile uint64_t *counter;
static unsigned char *private_part;
static unsigned char *mapped_deleted;
static ino_t renamed_inode;

static unsigned char byte_at(size_t offset)
{
	return (unsigned char)(offset * 7 + offset / PAGE + 1);
}

static void fill(int fd, size_t length, off_t where)
{
	unsigned char content[ODD];
	for (size_t at = 0; at < length; at++)
		content[at] = byte_at(at);
	if (pwrite(fd, content, length, where) != (ssize_t)length)
		victim_die("pwrite");
}

static bool holds(int fd, size_t length, off_t where)
{
	unsigned char content[ODD];
	if (pread(fd, content, length, where) != (ssize_t)length)
		return false;
	for (size_t at = 0; at < length; at++)
		if (content[at] != byte_at(at))
			return false;
	return true;
}

static int new_file(const char *suffix, int flags)
{
	return MUST(open(victim_path(suffix), O_CREAT | O_EXCL | flags, 0640));
}

static void make_memory(void)
{
	memory = MUST(memfd_create(MEMORY_NAME, MFD_CLOEXEC));
	MUST(ftruncate(memory, PAGES * PAGE));
	fill(memory, PAGE, 2 * PAGE);
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", memory);
	memory_again = MUST(open(path, O_RDONLY));
	memory_copy = MUST(dup(memory));
	MUST(lseek(memory, OFFSET, SEEK_SET));
	void *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, PAGE);
	private_part = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, memory, 2 * PAGE);
	if (shared == MAP_FAILED || private_part == MAP_FAILED)
		victim_die("mmap");
	counter = shared;
	private_part[1] = 0xee;
	sealed = MUST(memfd_create("sealed", MFD_ALLOW_SEALING));
	fill(sealed, ODD, 0);
	MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
}

static void make_files(void)
{
	deleted = new_file("deleted", O_RDWR | O_APPEND | O_CLOEXEC);
	fill(deleted, ODD, 0);
	MUST(ftruncate(deleted, FAR));
	fill(deleted, 1000, FAR);
	MUST(ftruncate(deleted, FAR + 1000 + ODD));
	mapped_deleted = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, deleted, 0);
	if (mapped_deleted == MAP_FAILED)
		victim_die("mmap");
	MUST(unlink(victim_path("deleted")));
	int writer = new_file("read-only", O_WRONLY);
	fill(writer, 100, 0);
	read_only = MUST(open(victim_path("read-only"), O_RDONLY));
	close(writer);
	MUST(fchmod(read_only, 0400));
	MUST(unlink(victim_path("read-only")));
	MUST(lseek(read_only, 5, SEEK_SET));
	char path[PATH_MAX];
	snprintf(path, sizeof(path), "%s", victim_path("temporary"));
	*strrchr(path, '/') = '\0';
	temporary = MUST(open(path, O_TMPFILE | O_RDWR, 0600));
	fill(temporary, 200, 0);
}

static void make_names(void)
{
	char old[PATH_MAX];
	struct stat found;
	renamed = new_file("old-name", O_RDWR);
	MUST(fstat(renamed, &found));
	renamed_inode = found.st_ino;
	strcpy(old, victim_path("old-name"));
	MUST(rename(old, victim_path("new (deleted)")));
	replaced = new_file("replaced", O_RDWR);
	fill(replaced, 300, 0);
	close(new_file("replacement", O_WRONLY));
	strcpy(old, victim_path("replacement"));
	MUST(rename(old, victim_path("replaced")));
	MUST(mkdir(victim_path("dir"), 0750));
	directory = MUST(open(victim_path("dir"), O_RDONLY | O_DIRECTORY));
	MUST(rmdir(victim_path("dir")));
	MUST(mkdir(victim_path("cwd"), 0700));
	MUST(chdir(victim_path("cwd")));
	MUST(rmdir(victim_path("cwd")));
}

static bool has_link(int fd, const char *wanted)
{
	char path[64], target[PATH_MAX] = "";
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, target, sizeof(target) - 1) > 0 && strcmp(target, wanted) == 0;
}

static void check_memory(void)
{
	struct stat now;
	uint64_t value = 0;
	EXPECT(has_link(memory, "/memfd:" MEMORY_NAME " (deleted)"), "the memory file has another name");
	EXPECT(fstat(memory, &now) == 0 && now.st_size == PAGES * PAGE, "it has %lld bytes", (long long)now.st_size);
	EXPECT(holds(memory_again, PAGE, 2 * PAGE), "the memory file changed");
	*counter += 1;
	EXPECT(pread(memory_again, &value, sizeof(value), PAGE) == sizeof(value) && value == *counter,
	       "the mapping is not of the file");
	EXPECT(private_part[1] == 0xee && private_part[2] == byte_at(2), "the private mapping changed");
	EXPECT(lseek(memory_copy, 0, SEEK_CUR) == OFFSET && lseek(memory_again, 0, SEEK_CUR) == 0, "positions changed");
	EXPECT(write(memory_again, "x", 1) == -1 && errno == EBADF, "the read-only description can be written");
	EXPECT(fcntl(memory, F_GET_SEALS) == F_SEAL_SEAL, "the memory file has other seals");
	EXPECT(fcntl(sealed, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), "seals are gone");
	EXPECT(pwrite(sealed, "x", 1, 0) == -1 && errno == EPERM && holds(sealed, ODD, 0), "the sealed file changed");
	EXPECT(fcntl(sealed, F_ADD_SEALS, F_SEAL_SEAL) == 0, "no seal can be added");
}

static void check_files(void)
{
	struct stat now;
	char expected[PATH_MAX];
	snprintf(expected, sizeof(expected), "%s (deleted)", victim_path("deleted"));
	EXPECT(has_link(deleted, expected), "the deleted file has another name");
	EXPECT(fstat(deleted, &now) == 0 && now.st_size == FAR + 1000 + ODD && now.st_nlink == 0 && (now.st_mode & 0777) == 0640,
	       "the deleted file has %lld bytes, mode %o", (long long)now.st_size, now.st_mode);
	EXPECT(now.st_blocks < HOLE_BLOCKS, "the holes are filled: %lld blocks", (long long)now.st_blocks);
	EXPECT(holds(deleted, ODD, 0) && holds(deleted, 1000, FAR), "the deleted file changed");
	EXPECT(mapped_deleted[17] == byte_at(17), "the mapping of the deleted file changed");
	EXPECT(pwrite(deleted, "z", 1, 17) == 1 && fcntl(deleted, F_GETFL) & O_APPEND && fstat(deleted, &now) == 0 &&
		       now.st_size == FAR + 1000 + ODD + 1,
	       "the deleted file is not appended to");
	EXPECT(lseek(read_only, 0, SEEK_CUR) == 5 && holds(read_only, 100, 0), "the read-only file changed");
	EXPECT(holds(temporary, 200, 0), "the temporary file changed");
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", temporary);
	EXPECT(linkat(AT_FDCWD, path, AT_FDCWD, victim_path("linked"), AT_SYMLINK_FOLLOW) == 0,
	       "the temporary file gets no name: %s", strerror(errno));
}

static void check_names(void)
{
	struct stat now;
	char path[PATH_MAX];
	EXPECT(fstat(renamed, &now) == 0 && now.st_ino == renamed_inode && has_link(renamed, victim_path("new (deleted)")),
	       "the renamed file is another");
	EXPECT(holds(replaced, 300, 0), "the replaced file changed");
	EXPECT(stat(victim_path("replaced"), &now) == 0 && now.st_size == 0, "its replacement changed");
	EXPECT(fstat(directory, &now) == 0 && now.st_nlink == 0 && S_ISDIR(now.st_mode) && (now.st_mode & 0777) == 0750,
	       "the deleted directory is another");
	EXPECT(openat(directory, "x", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "it takes files");
	EXPECT(getcwd(path, sizeof(path)) == NULL && errno == ENOENT, "the working directory is there: %s", path);
	EXPECT(access(victim_path("cwd"), F_OK) == -1 && access(victim_path("dir"), F_OK) == -1 &&
		       access(victim_path("deleted"), F_OK) == -1 && access(victim_path("read-only"), F_OK) == -1,
	       "a deleted name is back");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make_memory();
	make_files();
	make_names();
	victim_ready();
	while (!victim_asked()) {
		uint64_t value = 0;
		EXPECT(pread(memory, &value, sizeof(value), PAGE) == sizeof(value) && value == *counter, "a count got lost");
		++*counter;
		victim_rest();
	}
	check_memory();
	check_files();
	check_names();
	return victim_end();
}
