/*
 * The x87 unit and the control registers of SSE: control word, values on the register stack, and mxcsr, each different
 * in each of two threads and different from the default.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <pthread.h>
#include <string.h>

enum { SPINS = 300000, THREADS = 2 };

struct control {
	uint16_t x87;
	uint32_t mxcsr;
};

/* Loads three numbers, spins, and pops them again. */
static void hold_stack(const long double in[3], long double out[3])
{
	uint64_t spins = SPINS;
	__asm__ volatile("fldt 0(%1)\n fldt 16(%1)\n fldt 32(%1)\n"
			 "1: dec %0\n jnz 1b\n"
			 "fstpt 32(%2)\n fstpt 16(%2)\n fstpt 0(%2)\n"
			 : "+r"(spins)
			 : "r"(in), "r"(out)
			 : "memory", "st", "st(1)", "st(2)");
}

static void set_control(const struct control *control)
{
	__asm__ volatile("fldcw %0\n ldmxcsr %1" : : "m"(control->x87), "m"(control->mxcsr));
}

static struct control get_control(void)
{
	struct control control = {0};
	__asm__ volatile("fnstcw %0\n stmxcsr %1" : "=m"(control.x87), "=m"(control.mxcsr));
	return control;
}

/* Rounding to single precision upwards and downwards; SSE flushing to zero, rounding downwards and upwards. */
static const struct control controls[THREADS] = {{0x087f, 0xbf80}, {0x047f, 0xdf80}};
static volatile uint64_t rounds[THREADS];
static volatile bool end;

static void *compute(void *argument)
{
	int index = (int)(intptr_t)argument;
	set_control(&controls[index]);
	while (!end) {
		long double in[3] = {1.25L + (long double)rounds[index], -3.5L, 1e300L}, out[3];
		memset(out, 0, sizeof(out));
		hold_stack(in, out);
		struct control now = get_control();
		EXPECT(now.x87 == controls[index].x87, "the x87 control word was %#x, is %#x", controls[index].x87, now.x87);
		/* the low six bits are exception flags, which arithmetic sets */
		EXPECT((now.mxcsr & ~0x3fu) == controls[index].mxcsr, "mxcsr was %#x, is %#x", controls[index].mxcsr,
		       now.mxcsr);
		for (int number = 0; number < 3; number++)
			EXPECT(in[number] == out[number], "x87 register %d changed", number);
		rounds[index]++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	pthread_t handles[THREADS];
	for (int index = 0; index < THREADS; index++)
		if (pthread_create(&handles[index], NULL, compute, (void *)(intptr_t)index) != 0)
			victim_die("pthread_create");
	for (int index = 0; index < THREADS; index++)
		victim_reaches(&rounds[index], 2);
	victim_ready();
	while (!victim_asked())
		victim_rest();
	for (int index = 0; index < THREADS; index++)
		EXPECT(victim_reaches(&rounds[index], rounds[index] + 2), "thread %d does not go on", index);
	end = true;
	for (int index = 0; index < THREADS; index++)
		pthread_join(handles[index], NULL);
	return victim_end();
}
