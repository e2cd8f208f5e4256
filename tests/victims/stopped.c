/*
 * Job control: stops itself with SIGSTOP and must stay stopped until somebody sends SIGCONT; then it goes on, told by
 * its handler, and verifies itself like any other.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <signal.h>

static volatile sig_atomic_t continued;

static void on_continue(int signal)
{
	(void)signal;
	continued++;
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	struct sigaction action = {.sa_handler = on_continue, .sa_flags = SA_RESTART};
	MUST(sigaction(SIGCONT, &action, NULL));
	victim_ready();
	raise(SIGSTOP);
	EXPECT(continued == 1, "it went on after %d SIGCONTs", (int)continued);
	while (!victim_asked())
		victim_rest();
	EXPECT(continued == 1, "SIGCONT arrived %d times", (int)continued);
	return victim_end();
}
