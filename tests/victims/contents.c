/*
 * Files that are written all the time: one is appended to, one is written at its beginning, one through a shared mapping.
 * After a restart with --files rollback each holds what the program remembers, whatever was written after the image.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAPPED_BYTES = 3 * 4096, DATA_BYTES = 5000 };

static int logged, data;
static volatile uint64_t *mapped;
static uint64_t count;

static void open_all(void)
{
	static char filling[DATA_BYTES];
	memset(filling, 'x', sizeof(filling));
	logged = MUST(open(victim_path("log"), O_WRONLY | O_APPEND | O_CREAT | O_TRUNC, 0640));
	data = MUST(open(victim_path("data"), O_RDWR | O_CREAT | O_TRUNC, 0600));
	if (write(data, filling, sizeof(filling)) != sizeof(filling))
		victim_die("write");
	int fd = MUST(open(victim_path("mapped"), O_RDWR | O_CREAT | O_TRUNC, 0600));
	MUST(ftruncate(fd, MAPPED_BYTES));
	mapped = MUST(mmap(NULL, MAPPED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	close(fd);
}

static void write_all(void)
{
	char line[32];
	count++;
	int length = snprintf(line, sizeof(line), "%llu\n", (unsigned long long)count);
	EXPECT(write(logged, line, (size_t)length) == length, "cannot append");
	EXPECT(pwrite(data, &count, sizeof(count), 0) == sizeof(count), "cannot write");
	for (size_t page = 0; page < MAPPED_BYTES; page += 4096)
		mapped[page / sizeof(*mapped)] = count;
}

static void check_log(void)
{
	FILE *file = fopen(victim_path("log"), "r");
	unsigned long long line, wanted = 1;
	while (file && fscanf(file, "%llu", &line) == 1 && line == wanted)
		wanted++;
	EXPECT(file && wanted == count + 1 && feof(file), "line %llu of the log is not what was written (%llu are)", wanted,
	       (unsigned long long)count);
}

static void check_same(int fd, const char *suffix, uint64_t found)
{
	struct stat ours, named;
	EXPECT(found == count, "%s says %llu, not %llu", suffix, (unsigned long long)found, (unsigned long long)count);
	EXPECT(stat(victim_path(suffix), &named) == 0, "%s is gone", suffix);
	EXPECT(fd < 0 || (fstat(fd, &ours) == 0 && ours.st_ino == named.st_ino), "%s is another file than the open one", suffix);
}

static uint64_t number_in(const char *suffix)
{
	uint64_t found = 0;
	int fd = open(victim_path(suffix), O_RDONLY);
	EXPECT(fd >= 0 && read(fd, &found, sizeof(found)) == sizeof(found), "cannot read %s", suffix);
	close(fd);
	return found;
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	open_all();
	victim_ready();
	while (!victim_asked()) {
		write_all();
		victim_rest();
	}
	check_log();
	check_same(data, "data", number_in("data"));
	check_same(-1, "mapped", number_in("mapped"));
	check_same(-1, "mapped", mapped[0]);
	struct stat found;
	EXPECT(fstat(data, &found) == 0 && found.st_size == DATA_BYTES && (found.st_mode & 07777) == 0600,
	       "size or mode of the data changed");
	return victim_end();
}
