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
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

static void *wait_for_ever(void *argument)
{
    if (vfork() == 0) {
        close(creat("ready", 0600)); /* the thread is in vfork(2) by now */
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


FORKS_STORM = """
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_long *done;

static void work(int depth)
{
    pid_t pid = fork();

    if (pid == 0) {
        if (depth && rand_r(&(unsigned){(unsigned)getpid()}) % 2)
            work(depth - 1);
        usleep((unsigned)getpid() % 2000);
        done[1]++;
        _exit(42);
    }
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 42 << 8)
        done[2]++;
    done[0]++;
}

int main(void)
{
    done = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 6; i++)
        if (fork() == 0)
            for (;;)
                work(3);
    fclose(fopen("ready", "w"));
    for (;;) {
        FILE *file = fopen("counts.new", "w");
        fprintf(file, "%ld %ld %ld\\n", done[0], done[1], done[2]);
        fclose(file);
        rename("counts.new", "counts");
        usleep(2000);
    }
}
"""

SPAWNS_STORM = """
#define _GNU_SOURCE
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int main(void)
{
    char *words[] = {"/bin/true", NULL};
    long spawned = 0, wrong = 0;

    fclose(fopen("ready", "w"));
    for (;;) {
        pid_t pid;
        int status = -1;
        int error = posix_spawn(&pid, words[0], NULL, NULL, words, environ);
        if (error || waitpid(pid, &status, 0) != pid || status)
            wrong++;
        spawned++;
        FILE *file = fopen("counts.new", "w");
        fprintf(file, "%ld %ld\\n", spawned, wrong);
        fclose(file);
        rename("counts.new", "counts");
    }
}
"""

VFORKS = """
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static long done, wrong;

int main(void)
{
    fclose(fopen("ready", "w"));
    for (;;) {
        int status = -1;
        pid_t pid = vfork();
        if (pid == 0) {
            usleep(40000);
            if (done % 2)
                execl("/bin/true", "/bin/true", NULL);
            _exit(done % 2 ? 1 : 7);
        }
        if (waitpid(pid, &status, 0) != pid || status != (done % 2 ? 0 : 7 << 8))
            wrong++;
        done++;
        FILE *file = fopen("counts.new", "w");
        fprintf(file, "%ld %ld\\n", done, wrong);
        fclose(file);
        rename("counts.new", "counts");
    }
}
"""

SHARES_MEMORY = """
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static char stack[65536];

static int live(void *argument)
{
    for (;;)
        usleep(1000);
    return argument != NULL;
}

int main(void)
{
    clone(live, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    fclose(fopen("ready", "w"));
    live(NULL);
}
"""
