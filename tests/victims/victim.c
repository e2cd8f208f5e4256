#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { REST_NS = 3000000, PATIENCE_NS = 1000000000 };

static char prefix[PATH_MAX / 2];
static const char *name_prefix;
static int directory = -1;

static pthread_mutex_t failure_lock = PTHREAD_MUTEX_INITIALIZER;
static char failure[512];

void victim_begin(int argc, char **argv)
{
	if (argc < 2 || strlen(argv[1]) >= sizeof(prefix) || argv[1][0] != '/') {
		fprintf(stderr, "usage: %s /ABSOLUTE/PREFIX [ARGUMENT...]\n", argv[0]);
		exit(2);
	}
	strcpy(prefix, argv[1]);
	char *slash = strrchr(prefix, '/');
	*slash = '\0';
	directory = MUST(open(*prefix ? prefix : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	*slash = '/';
	name_prefix = slash + 1;
}

const char *victim_path(const char *suffix)
{
	static __thread char path[PATH_MAX];
	snprintf(path, sizeof(path), "%s.%s", prefix, suffix);
	return path;
}

int victim_directory(void)
{
	return directory;
}

static const char *name_of(const char *suffix)
{
	static __thread char name[NAME_MAX + 1];
	if (snprintf(name, sizeof(name), "%s.%s", name_prefix, suffix) >= (int)sizeof(name))
		victim_die("name too long");
	return name;
}

void victim_write(const char *suffix, const char *text)
{
	char temporary[NAME_MAX + 1];
	snprintf(temporary, sizeof(temporary), "%.200s.%.30s.new", name_prefix, suffix);
	int fd = MUST(openat(directory, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
	size_t length = strlen(text);
	if (write(fd, text, length) != (ssize_t)length)
		victim_die("write");
	close(fd);
	MUST(renameat(directory, temporary, directory, name_of(suffix)));
}

void victim_ready(void)
{
	victim_write("ready", "");
}

bool victim_asked(void)
{
	return faccessat(directory, name_of("verify"), F_OK, 0) == 0;
}

void victim_rest(void)
{
	struct timespec period = {.tv_nsec = REST_NS};
	while (nanosleep(&period, &period) != 0 && errno == EINTR)
		;
}

void victim_fail(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	pthread_mutex_lock(&failure_lock);
	if (failure[0] == '\0')
		vsnprintf(failure, sizeof(failure), format, arguments);
	pthread_mutex_unlock(&failure_lock);
	va_end(arguments);
}

void victim_die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	_exit(3);
}

int victim_end(void)
{
	char result[sizeof(failure) + 16];
	pthread_mutex_lock(&failure_lock);
	bool failed = failure[0] != '\0';
	snprintf(result, sizeof(result), failed ? "FAIL: %s\n" : "PASS\n", failure);
	pthread_mutex_unlock(&failure_lock);
	victim_write("result", result);
	return failed;
}

uint64_t victim_now(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

pid_t victim_tid(void)
{
	return (pid_t)syscall(SYS_gettid);
}

bool victim_reaches(const volatile uint64_t *counter, uint64_t value)
{
	uint64_t deadline = victim_now() + 50ull * PATIENCE_NS;
	while (__atomic_load_n(counter, __ATOMIC_SEQ_CST) < value) {
		if (victim_now() > deadline)
			return false;
		victim_rest();
	}
	return true;
}
