"""Programs in C that call checkpoint and restart by number, with syscall(2) and nothing else."""

_FRONT = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static inline long checkpoint(int pid, int fd, unsigned long flags) { return syscall(387, pid, fd, flags); }

static inline long restart(int crid, int fd, unsigned long flags) { return syscall(388, crid, fd, flags); }

static inline const char *name(long result) { return result < 0 ? strerrorname_np(errno) : result ? "crid" : "0"; }

static inline int image(const char *path) { return open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600); }

static inline void rest(void)
{
    close(open("ready", O_WRONLY | O_CREAT, 0600));
    for (;;)
        usleep(1000);
}
"""


def _program(body: str) -> str:
    return f"{_FRONT}{body}"


SAVES_ITSELF = _program("""
int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    long steps = 41;
    long crid = checkpoint(0, image("image"), 0);
    printf("%ld %ld\\n", crid, ++steps);
    for (;;)
        pause();
}
""")

ERRORS = _program("""
int main(int argc, char **argv)
{
    int other = argc > 1 ? atoi(argv[1]) : 0, ends[2];
    int fd = image("image"), reading = open("/dev/zero", O_RDONLY), place = open("image", O_PATH);

    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("flags %s\\n", name(checkpoint(0, fd, 1)));
    printf("flags-before-fd %s\\n", name(checkpoint(0, 99, 1)));
    printf("high-flags %s\\n", name(checkpoint(0, fd, 1UL << 40)));
    printf("closed %s\\n", name(checkpoint(0, 99, 0)));
    printf("negative %s\\n", name(checkpoint(0, -1, 0)));
    printf("fd-before-pid %s\\n", name(checkpoint(1 << 22, 99, 0)));
    printf("reading %s\\n", name(checkpoint(0, reading, 0)));
    printf("place %s\\n", name(checkpoint(0, place, 0)));
    printf("nobody %s\\n", name(checkpoint(1 << 22, fd, 0)));
    printf("negative-pid %s\\n", name(checkpoint(-1, fd, 0)));
    printf("high-word-of-fd %s\\n", name(syscall(387, 0L, (long)fd | 1L << 32, 0L)));
    printf("itself-by-pid %s\\n", name(checkpoint(getpid(), fd, 0)));
    pipe(ends);
    close(ends[0]);
    printf("no-reader %s\\n", name(checkpoint(0, ends[1], 0)));
    close(ends[1]);
    printf("full %s\\n", name(checkpoint(0, open("/dev/full", O_WRONLY), 0)));
    if (setuid(65534))
        return 1;
    printf("not-ours %s\\n", name(checkpoint(other, fd, 0)));
    printf("ours %s\\n", name(checkpoint(0, fd, 0)));
    rest();
}
""")

A_THREAD_CALLS = _program("""
static atomic_long counted[3];

static void *count(void *at)
{
    for (;;) {
        usleep(500);
        ++*(atomic_long *)at;
    }
    return NULL;
}

static void *call(void *unused)
{
    printf("%s\\n", name(checkpoint(0, image("image"), 0)));
    close(open("returned", O_WRONLY | O_CREAT, 0600));
    return unused;
}

int main(void)
{
    pthread_t caller;

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < 3; i++)
        pthread_create(&(pthread_t){0}, NULL, count, &counted[i]);
    pthread_create(&caller, NULL, call, NULL);
    pthread_join(caller, NULL);
    for (int i = 0; i < 3; i++)
        for (long before = counted[i]; counted[i] == before;)
            usleep(500);
    puts("all count");
    rest();
}
""")

TWO_THREADS_CALL = _program("""
static void *call(void *path)
{
    int fd = image(path);
    for (int i = 0; i < 5; i++)
        printf("%s %ld\\n", (char *)path, checkpoint(0, fd, 0));
    return NULL;
}

int main(void)
{
    pthread_t threads[2];

    setvbuf(stdout, NULL, _IOLBF, 0);
    pthread_create(&threads[0], NULL, call, "one");
    pthread_create(&threads[1], NULL, call, "two");
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    rest();
}
""")

SIGNALS_COME = _program("""
static volatile sig_atomic_t ticks;

static void tick(int number) { (void)number; ticks++; }

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = tick, .sa_flags = argc > 1 ? SA_RESTART : 0};
    struct itimerval every = {{0, 700}, {0, 700}};

    setvbuf(stdout, NULL, _IOLBF, 0);
    (void)argv;
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
    for (int i = 0; i < 20; i++) {
        int before = ticks;
        puts(name(checkpoint(0, image("image"), 0)));
        while (ticks == before)
            usleep(100);
    }
    rest();
}
""")

THE_CHILD_CALLS = _program("""
int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1) { /* what the child has executed */
        printf("child %s\\n", name(checkpoint(0, image("child"), 0)));
        printf("parent %s\\n", name(checkpoint(getppid(), image("parent"), 0)));
        rest();
    }
    if (fork() == 0)
        execl("/proc/self/exe", argv[0], "child", NULL);
    wait(NULL);
}
""")

A_READER_OF_ITS_OWN = _program("""
static int ends[2];

static void *copy(void *unused)
{
    static char buffer[1 << 16];
    int fd = image("image");
    ssize_t n;

    while ((n = read(ends[0], buffer, sizeof buffer)) > 0)
        if (write(fd, buffer, n) != n)
            abort();
    return unused;
}

int main(void)
{
    pthread_t reader;

    setvbuf(stdout, NULL, _IOLBF, 0);
    pipe2(ends, O_NONBLOCK);
    fcntl(ends[0], F_SETFL, 0);
    pthread_create(&reader, NULL, copy, NULL);
    puts(name(checkpoint(0, ends[1], 0)));
    close(ends[1]);
    pthread_join(reader, NULL);
    rest();
}
""")

NOBODY_READS = _program("""
int main(void)
{
    static char much[1 << 20];
    int ends[2];

    setvbuf(stdout, NULL, _IOLBF, 0);
    pipe2(ends, O_NONBLOCK);
    fcntl(ends[1], F_SETPIPE_SZ, sizeof much);
    while (write(ends[1], much, sizeof much) > 0) /* nothing more goes into the pipe */
        ;
    puts(name(checkpoint(0, ends[1], 0)));
    puts(name(checkpoint(0, image("image"), 0)));
    rest();
}
""")

RESTARTS = _program("""
int main(int argc, char **argv)
{
    int saved = open(argc > 1 ? argv[1] : "image", O_RDONLY), rubbish = open("/proc/self/exe", O_RDONLY);
    int empty = open("/dev/null", O_RDWR), writing = image("other");

    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("flags %s\\n", name(restart(0, saved, 1)));
    printf("flags-before-fd %s\\n", name(restart(0, 99, 1UL << 40)));
    printf("closed %s\\n", name(restart(0, 99, 0)));
    printf("writing %s\\n", name(restart(0, writing, 0)));
    printf("rubbish %s\\n", name(restart(0, rubbish, 0)));
    printf("empty %s\\n", name(restart(0, empty, 0)));
    close(open("tried", O_WRONLY | O_CREAT, 0600));
    if (argc > 2 && setuid(65534))
        return 1;
    printf("returned %s\\n", name(restart(0, saved, 0)));
    rest();
}
""")

GOES_BACK = _program("""
int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    long crid = checkpoint(0, image("image"), 0);
    printf("%ld\\n", crid);
    if (crid > 0) {
        printf("went back %s\\n", name(restart(crid, open("image", O_RDONLY), 0)));
        return 1;
    }
    rest();
}
""")

CALLS_ON_AND_ON = _program("""
static atomic_long counted;

static void *count(void *unused)
{
    for (;;) {
        usleep(200);
        counted++;
    }
    return unused;
}

int main(void)
{
    int fd = image("image");

    setvbuf(stdout, NULL, _IOLBF, 0);
    pthread_create(&(pthread_t){0}, NULL, count, NULL);
    while (access("enough", F_OK)) {
        long before = counted, result = checkpoint(0, fd, 0);
        if (result == 0 || (result < 0 && errno != EIO))
            puts(name(result));
        ftruncate(fd, 0);
        lseek(fd, 0, SEEK_SET);
        while (counted == before)
            usleep(100);
    }
    puts("enough");
    rest();
}
""")

DOES_AS_TOLD = _program("""
/* Each command is the number of a call, three words, and 1 if the second is a descriptor of who commands. Commands and
 * results are in files, and nothing else is open, so that it can be saved as it is. */
int main(int argc, char **argv)
{
    int commands = open("commands", O_RDONLY), results = open("results", O_WRONLY | O_CREAT | O_APPEND, 0600);
    long command[5], result[2];

    if (argc < 2)
        return 1;
    for (;;) {
        if (read(commands, command, sizeof command) != sizeof command) {
            usleep(500);
            continue;
        }
        if (command[4]) {
            int commander = syscall(SYS_pidfd_open, atoi(argv[1]), 0);
            command[2] = syscall(SYS_pidfd_getfd, commander, (int)command[2], 0);
            close(commander);
        }
        result[0] = syscall(command[0], command[1], command[2], command[3]);
        result[1] = errno;
        write(results, result, sizeof result);
        if (command[4])
            close(command[2]);
    }
}
""")
