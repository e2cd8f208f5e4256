"""Small programs that make trouble, compiled or interpreted on the spot."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.victims import Program, python_script, until

THREADS_COME_AND_GO = """
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static void *live(void *argument) { usleep(200); return argument; }

int main(void)
{
    pthread_t threads[8];

    fclose(fopen("ready", "w"));
    for (;;) {
        for (int i = 0; i < 8; i++)
            pthread_create(&threads[i], NULL, live, NULL);
        for (int i = 0; i < 8; i++)
            pthread_join(threads[i], NULL);
    }
}
"""

VFORK_WITHOUT_EXEC = """
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static void *wait_for_ever(void *argument)
{
    if (vfork() == 0) {
        while (access("go", F_OK))
            usleep(1000);
        _exit(0);
    }
    return argument;
}

int main(void)
{
    pthread_t thread;

    pthread_create(&thread, NULL, wait_for_ever, NULL);
    usleep(20000);
    fclose(fopen("ready", "w"));
    for (;;)
        usleep(1000);
}
"""

WITHOUT_VDSO = """
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void)
{
    unsigned long areas[8][2];
    char line[512];
    int n = 0;
    FILE *maps = fopen("/proc/self/maps", "r");

    while (fgets(line, sizeof line, maps))
        if (strstr(line, "[vvar") || strstr(line, "[vdso]"))
            n += sscanf(line, "%lx-%lx", &areas[n][0], &areas[n][1]) == 2;
    fclose(maps);
    while (n--)
        munmap((void *)areas[n][0], areas[n][1] - areas[n][0]);
    fclose(fopen("ready", "w"));
    for (;;)
        usleep(1000);
}
"""

COUNTS_SIGNALS = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_int signals;
static atomic_int work[4];

static void count(int number) { (void)number; signals++; }

static void *live(void *done)
{
    for (;;) {
        usleep(500);
        ++*(atomic_int *)done;
    }
}

int main(void)
{
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    int file = open("counts", O_RDWR | O_CREAT, 0600);
    char text[65];

    memset(malloc(16 << 20), 1, 16 << 20);
    sigaction(SIGRTMIN, &action, NULL);
    for (int i = 0; i < 4; i++)
        pthread_create(&(pthread_t){0}, NULL, live, &work[i]);
    fclose(fopen("ready", "w"));
    for (;;) {
        usleep(500);
        sprintf(text, "%12d %12d %12d %12d %12d", signals, work[0], work[1], work[2], work[3]);
        pwrite(file, text, 64, 0);
    }
}
"""


def _ready(program: Program) -> Program:
    try:
        until("ready", (program.directory / "ready").exists)
    except BaseException:
        program.close()
        raise
    return program


def compiled(directory: Path, source: str) -> Program:
    """Return a C program that makes a file ``ready``."""
    path = directory / "program"
    subprocess.run(["gcc", "-O1", "-pthread", "-x", "c", "-o", path, "-"], input=source.encode(), check=True)
    return _ready(Program([path], directory))


def interpreted(directory: Path, source: str) -> Program:
    """Return a Python program; ``rest()`` says that it is ready and does no more."""
    rest = "def rest():\n    import time\n    open('ready', 'w').close()\n    while True: time.sleep(0.01)\n"
    return _ready(python_script(directory, rest + source))
