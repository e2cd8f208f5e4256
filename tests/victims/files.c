/*
 * Open files: offsets, flags, duplicates, O_PATH, directories with a position, devices, owners, locks; and umask and
 * working directory.  Nothing is changed before the test asks, so that an old image still finds the files it knew.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OFFSET = 1234, ENTRIES = 200, HIGH_FD = 300, UMASK = 027, SIGNAL = 40 };

static int data, data_copy, data_again, append, path_only, directory, flocked, locked, high, null, zero, full, random_;
static char seen[ENTRIES];
static struct stat data_stat, directory_stat;

static int create(const char *suffix, const char *content, int flags)
{
	int fd = MUST(open(victim_path(suffix), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
	if (write(fd, content, strlen(content)) != (ssize_t)strlen(content))
		victim_die("write");
	close(fd);
	return MUST(open(victim_path(suffix), flags));
}

/* Notes some of the entries of the directory; false at the end. */
static bool list_some(void)
{
	struct entry {
		uint64_t inode;
		int64_t offset;
		uint16_t bytes;
		uint8_t type;
		char name[];
	};
	char buffer[1024] __attribute__((aligned(8)));
	long bytes = syscall(SYS_getdents64, directory, buffer, sizeof(buffer));
	for (long at = 0; at < bytes;) {
		const struct entry *entry = (const struct entry *)(buffer + at);
		int number = -1;
		if (sscanf(entry->name, "entry-%d", &number) == 1 && number >= 0 && number < ENTRIES)
			seen[number]++;
		at += entry->bytes;
	}
	return bytes > 0;
}

static void open_directory(void)
{
	MUST(mkdir(victim_path("dir"), 0755));
	MUST(chdir(victim_path("dir")));
	char name[32];
	for (int number = 0; number < ENTRIES; number++) {
		snprintf(name, sizeof(name), "entry-%d", number);
		close(MUST(open(name, O_WRONLY | O_CREAT, 0600)));
	}
	directory = MUST(open(".", O_RDONLY | O_DIRECTORY));
	list_some();
	MUST(stat(".", &directory_stat));
}

static void lock(int fd, short type, off_t start, off_t length)
{
	struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
	MUST(fcntl(fd, F_SETLK, &range));
}

static void open_all(void)
{
	static char content[4097];
	memset(content, 'a', sizeof(content) - 1);
	data = create("data", content, O_RDWR);
	MUST(lseek(data, OFFSET, SEEK_SET));
	data_copy = MUST(fcntl(data, F_DUPFD_CLOEXEC, 50));
	data_again = MUST(open(victim_path("data"), O_RDONLY | O_CLOEXEC));
	MUST(fstat(data, &data_stat));
	MUST(fcntl(data, F_SETOWN, getpid()));
	MUST(fcntl(data, F_SETSIG, SIGNAL));
	append = create("append", "first\n", O_WRONLY | O_APPEND | O_NONBLOCK);
	path_only = MUST(open(victim_path("data"), O_PATH));
	high = MUST(dup2(data_again, HIGH_FD));
	flocked = create("flock", "", O_RDONLY);
	MUST(flock(flocked, LOCK_EX));
	locked = create("locks", content, O_RDWR);
	lock(locked, F_WRLCK, 0, 10);
	lock(locked, F_RDLCK, 100, 50);
	lock(locked, F_WRLCK, 1000, 0);
	null = MUST(open("/dev/null", O_RDWR));
	zero = MUST(open("/dev/zero", O_RDONLY));
	full = MUST(open("/dev/full", O_WRONLY));
	random_ = MUST(open("/dev/urandom", O_RDONLY));
	umask(UMASK);
}

static void check_offsets(void)
{
	struct stat now;
	EXPECT(lseek(data, 0, SEEK_CUR) == OFFSET, "the offset was %d, is %lld", OFFSET, (long long)lseek(data, 0, SEEK_CUR));
	EXPECT(lseek(data, 5, SEEK_SET) == 5 && lseek(data_copy, 0, SEEK_CUR) == 5, "a duplicate has its own offset");
	EXPECT(lseek(data_again, 0, SEEK_CUR) == 0, "another description shares the offset");
	EXPECT(lseek(high, 7, SEEK_SET) == 7 && lseek(data_again, 0, SEEK_CUR) == 7, "descriptor %d is no duplicate", HIGH_FD);
	EXPECT(fstat(data, &now) == 0 && now.st_ino == data_stat.st_ino && now.st_dev == data_stat.st_dev,
	       "it is another file");
	EXPECT(fstat(path_only, &now) == 0 && now.st_ino == data_stat.st_ino, "the O_PATH descriptor leads elsewhere");
	char byte;
	EXPECT(read(path_only, &byte, 1) == -1 && errno == EBADF, "the O_PATH descriptor can be read");
	EXPECT(read(data, &byte, 1) == 1 && byte == 'a', "the file cannot be read");
}

static void check_flags(void)
{
	EXPECT(fcntl(data, F_GETFD) == 0 && fcntl(data_copy, F_GETFD) == FD_CLOEXEC, "close-on-exec changed");
	EXPECT((fcntl(data, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK)) == O_RDWR, "flags of the file changed");
	EXPECT((fcntl(append, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK)) == (O_WRONLY | O_APPEND | O_NONBLOCK),
	       "flags of the appended file changed");
	EXPECT(fcntl(data, F_GETOWN) == getpid() && fcntl(data, F_GETSIG) == SIGNAL, "owner or signal of the file changed");
	EXPECT(write(append, "second\n", 7) == 7, "nothing can be appended");
	struct stat now;
	EXPECT(fstat(append, &now) == 0 && now.st_size == 13, "the appended file has %lld bytes", (long long)now.st_size);
	char word[8];
	EXPECT(write(null, "x", 1) == 1 && read(null, word, 1) == 0, "it is not /dev/null");
	EXPECT(read(zero, word, 8) == 8 && memcmp(word, "\0\0\0\0\0\0\0\0", 8) == 0, "it is not /dev/zero");
	EXPECT(write(full, "x", 1) == -1 && errno == ENOSPC, "it is not /dev/full");
	EXPECT(read(random_, word, 8) == 8, "it is not /dev/urandom");
}

static void check_directory(void)
{
	while (list_some())
		;
	for (int number = 0; number < ENTRIES; number++)
		EXPECT(seen[number] == 1, "directory entry %d was seen %d times", number, seen[number]);
	struct stat now;
	EXPECT(stat(".", &now) == 0 && now.st_ino == directory_stat.st_ino, "the working directory is another");
	char name[PATH_MAX];
	EXPECT(getcwd(name, sizeof(name)) != NULL && strcmp(name, victim_path("dir")) == 0, "the working directory is %s", name);
	EXPECT(umask(0) == UMASK, "umask changed");
}

/* How a range looks to another process: 0 no lock, or F_RDLCK + 1, F_WRLCK + 1. */
static int lock_seen(off_t start, off_t length)
{
	struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
	if (fcntl(locked, F_GETLK, &range) != 0 || range.l_type == F_UNLCK || range.l_pid != getppid())
		return 0;
	return range.l_type + 1;
}

static void check_locks(void)
{
	int other = MUST(open(victim_path("flock"), O_RDONLY | O_CLOEXEC));
	EXPECT(flock(other, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the flock is gone");
	EXPECT(flock(flocked, LOCK_UN) == 0 && flock(other, LOCK_EX | LOCK_NB) == 0, "the flock belonged to somebody else");
	pid_t child = MUST(fork());
	if (child == 0)
		_exit(lock_seen(0, 10) == F_WRLCK + 1 && lock_seen(10, 90) == 0 && lock_seen(100, 50) == F_RDLCK + 1 &&
				      lock_seen(150, 850) == 0 && lock_seen(5000, 1) == F_WRLCK + 1
			      ? 0
			      : 1);
	int status = -1;
	EXPECT(waitpid(child, &status, 0) == child && status == 0, "the POSIX locks are not as they were");
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	signal(SIGNAL, SIG_IGN);
	open_all();
	open_directory();
	victim_ready();
	while (!victim_asked()) {
		EXPECT(lseek(data_copy, 0, SEEK_CUR) == OFFSET, "the offset moved");
		victim_rest();
	}
	check_locks();
	check_offsets();
	check_flags();
	check_directory();
	return victim_end();
}
