/*
 * What every victim does: it says that it is ready, works until it is asked to verify itself, and says PASS or FAIL.
 *
 *   PROGRAM PREFIX [ARGUMENT...]
 *
 * The files are PREFIX.ready (made by the victim), PREFIX.verify (made by the test; the victim looks for it every few
 * milliseconds, which needs no state but a directory descriptor) and PREFIX.result ("PASS" or "FAIL: why").
 */
#ifndef VICTIM_H
#define VICTIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* Call first: takes PREFIX from the arguments. */
void victim_begin(int argc, char **argv);

/* The path PREFIX.suffix, valid until the next call in the same thread. */
const char *victim_path(const char *suffix);

/* The directory of PREFIX and a name in it, for *at() calls: works after the credentials are gone. */
int victim_directory(void);

void victim_ready(void);

/* Whether the test wants the verdict. */
bool victim_asked(void);

/* Sleeps one period of polling. */
void victim_rest(void);

/* Notes the first thing that went wrong; any thread. */
void victim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Ends the program if set-up is impossible. */
void victim_die(const char *what) __attribute__((noreturn));

/* Writes the verdict and gives the exit status. */
int victim_end(void);

/* Replaces PREFIX.suffix by a file with this text. */
void victim_write(const char *suffix, const char *text);

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t victim_now(void);

pid_t victim_tid(void);

/* Waits until *counter has reached a value; false after fifty seconds. */
bool victim_reaches(const volatile uint64_t *counter, uint64_t value);

#define EXPECT(condition, ...)                                                                                         \
	do {                                                                                                           \
		if (!(condition))                                                                                      \
			victim_fail(__VA_ARGS__);                                                                      \
	} while (0)

/* For set-up: the call must not return -1. */
#define MUST(call)                                                                                                     \
	__extension__({                                                                                                \
		__typeof__(call) result_ = (call);                                                                     \
		if ((intptr_t)result_ == -1)                                                                           \
			victim_die(#call);                                                                             \
		result_;                                                                                               \
	})

#endif
