/*
 * What emulators of other systems have: segments of their own, in the table of the process and in that of a thread; and
 * system calls that go to a handler while a byte says so.  Also memory whose equal pages may be merged, and huge pages
 * only where they were advised.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <asm/ldt.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MEMORY_MERGE_SET = 67, MEMORY_MERGE_GET = 68, DISPATCH = 59, FAR_ENTRY = 4000, TABLE_BYTES = 8192 * 8,
       OLD_GET_THREAD_AREA = 244, OLD_SET_THREAD_AREA = 243, ANY_ENTRY = -1, THP_EXCEPT_ADVISED = 2,
       PAGE = 4096 };

static unsigned char *low; /* 32-bit code can reach it */
static unsigned char table_before[TABLE_BYTES], table_now[TABLE_BYTES];
static volatile char selector;
static volatile int dispatched;
static volatile uint64_t thread_state;

static void on_call(int number, siginfo_t *info, void *context)
{
	selector = SYSCALL_DISPATCH_FILTER_ALLOW;
	dispatched = number == SIGSYS && info->si_syscall == SYS_getpid && context != NULL;
}

/* A system call of 32-bit programs, with its argument at an address that these can have. */
static long old_call(long number, void *argument)
{
	__asm__ volatile("int $0x80" : "+a"(number) : "b"(argument) : "memory", "r8", "r9", "r10", "r11");
	return number;
}

/* Reads the byte that a segment begins with. */
static unsigned char first_byte(unsigned short segment)
{
	unsigned char byte;
	unsigned short before;
	__asm__ volatile("mov %%es, %1\n\tmov %2, %%es\n\tmovb %%es:(%3), %0\n\tmov %1, %%es"
			 : "=&q"(byte), "=&r"(before)
			 : "r"(segment), "r"((uintptr_t)low)
			 : "memory");
	return byte;
}

/* Whether a segment can be loaded, and its limit. */
static unsigned limit_of(unsigned short segment)
{
	unsigned limit = 0;
	__asm__ volatile("lsl %w1, %0\n\tjz 1f\n\tmov $0, %0\n1:" : "+r"(limit) : "r"((unsigned)segment) : "cc");
	return limit;
}

static void make_local(unsigned number, unsigned limit)
{
	struct user_desc entry = {.entry_number = number, .base_addr = (unsigned)(uintptr_t)low, .limit = limit,
				  .seg_32bit = 1, .contents = MODIFY_LDT_CONTENTS_DATA, .useable = 1};
	MUST(syscall(SYS_modify_ldt, 0x11, &entry, sizeof(entry)));
}

static unsigned make_own(unsigned limit)
{
	struct user_desc *entry = (struct user_desc *)low;
	*entry = (struct user_desc){.entry_number = (unsigned)ANY_ENTRY, .base_addr = (unsigned)(uintptr_t)low,
				    .limit = limit, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
	if (old_call(OLD_SET_THREAD_AREA, entry) != 0)
		return 0; /* a kernel without IA32_EMULATION */
	return entry->entry_number;
}

static void verify_own(const char *who, unsigned number, unsigned limit)
{
	if (number == 0)
		return;
	struct user_desc *entry = (struct user_desc *)low;
	*entry = (struct user_desc){.entry_number = number};
	EXPECT(old_call(OLD_GET_THREAD_AREA, entry) == 0 && entry->base_addr == (uintptr_t)low && entry->limit == limit &&
		       entry->limit_in_pages && entry->useable && !entry->seg_not_present,
	       "%s lost its segment: base %x, limit %x", who, entry->base_addr, entry->limit);
	EXPECT(limit_of((unsigned short)(number << 3 | 3)) == (limit << 12 | 0xfff), "%s: limit %x", who,
	       limit_of((unsigned short)(number << 3 | 3)));
}

/* A thread whose system calls it handles itself whenever the byte says so. */
static void *live(void *argument)
{
	unsigned number = make_own(7);
	bool dispatches = prctl(DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, &selector) == 0;
	thread_state = 1;
	while (thread_state == 1)
		victim_rest();
	selector = SYSCALL_DISPATCH_FILTER_BLOCK;
	syscall(SYS_getpid);
	selector = SYSCALL_DISPATCH_FILTER_ALLOW;
	EXPECT(!dispatches || dispatched, "a system call did not go to the handler");
	verify_own("the thread", number, 7);
	return argument;
}

static long merges(void)
{
	return prctl(MEMORY_MERGE_GET, 0, 0, 0, 0);
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	struct sigaction action = {.sa_sigaction = on_call, .sa_flags = SA_SIGINFO};
	MUST(sigaction(SIGSYS, &action, NULL));
	low = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0));
	make_local(1, 77);
	make_local(FAR_ENTRY, 99);
	MUST(syscall(SYS_modify_ldt, 0, table_before, TABLE_BYTES));
	prctl(MEMORY_MERGE_SET, 1, 0, 0, 0); /* the kernel may have no KSM */
	if (prctl(PR_SET_THP_DISABLE, 1, THP_EXCEPT_ADVISED, 0, 0) != 0)
		MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	long merged = merges(), huge = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
	pthread_t thread;
	if (pthread_create(&thread, NULL, live, NULL) != 0)
		victim_die("pthread_create");
	victim_reaches(&thread_state, 1);
	unsigned own = make_own(5);
	memset(low, 0x5a, PAGE);
	victim_ready();
	while (!victim_asked())
		victim_rest();
	MUST(syscall(SYS_modify_ldt, 0, table_now, TABLE_BYTES));
	EXPECT(memcmp(table_before, table_now, TABLE_BYTES) == 0, "the table of segments has changed");
	EXPECT(limit_of(1 << 3 | 7) == 77 && limit_of((FAR_ENTRY << 3 | 7) & 0xffff) == 99, "segments of limits %u, %u",
	       limit_of(1 << 3 | 7), limit_of((FAR_ENTRY << 3 | 7) & 0xffff));
	EXPECT(first_byte(1 << 3 | 7) == 0x5a, "a segment cannot be loaded");
	EXPECT(merges() == merged, "equal pages were merged %ld, are %ld", merged, merges());
	EXPECT(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == huge, "huge pages were disabled %ld, are %d", huge,
	       prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	verify_own("the process", own, 5);
	thread_state = 2;
	pthread_join(thread, NULL);
	return victim_end();
}
