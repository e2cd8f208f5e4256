"""Timeouts that are in memory of the program or in a socket run out, however often it is saved."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from crd.image.profile import Thread
from crd.native.tracee import Registers
from tests.engine.images import restarted, taken_with
from tests.engine.programs import compiled
from tests.engine.test_changes import records

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.victims import Program

pytestmark = pytest.mark.root

TIMEOUT_SECONDS = 1.5
PAUSE_SECONDS = 0.3
SURELY_SLEPT_MS = 50
"""Less than PAUSE_SECONDS: the scheduler leaves out what other virtual machines took of the processor."""
WAITING = """
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define WHOLE {1, 500000000}

static const struct timespec whole = WHOLE;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(void)
{
    struct timeval limit = {1, 500000};
    struct epoll_event event;
    struct sembuf down = {0, -1, 0};
    sigset_t signals;
    int ends[2], listening = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    int semaphores = WITH_SEMAPHORES ? semget(IPC_PRIVATE, 1, 0600) : -1;
    char byte = 0, many[65536] = {0};

    socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
    listen(listening, 1);
    while (send(ends[1], many, sizeof many, MSG_DONTWAIT) > 0)
        ;
    for (int i = 0; i < 2; i++) {
        setsockopt(ends[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(ends[i], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    }
    setsockopt(listening, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigprocmask(SIG_BLOCK, &signals, 0);
    fclose(fopen("ready", "w"));
    double before = now();
    errno = 0;
    long result = CALL;
    int failed = errno;
    if (semaphores >= 0)
        semctl(semaphores, 0, IPC_RMID);
    FILE *done = fopen("written", "w");
    fprintf(done, "%ld %d %f", result, failed, now() - before);
    fclose(done);
    rename("written", "done");
    (void)event, (void)down, (void)byte;
    for (;;)
        pause();
}
"""
EAGAIN = 11
CALLS = {
    "epoll_pwait2": ("syscall(441, epoll, &event, 1, &whole, 0, 8)", 0, 0),
    "sigtimedwait": ("sigtimedwait(&signals, 0, &whole)", -1, EAGAIN),
    "semtimedop": ("semtimedop(semaphores, &down, 1, &whole)", -1, EAGAIN),
    "read": ("read(ends[1], &byte, 1)", -1, EAGAIN),
    "accept": ("accept(listening, 0, 0)", -1, EAGAIN),
    "send": ("send(ends[1], &byte, 1, 0)", -1, EAGAIN),
}


def waiting(directory: Path, name: str) -> Program:
    source = WAITING.replace("CALL", CALLS[name][0]).replace("WITH_SEMAPHORES", str(int(name == "semtimedop")))
    return compiled(directory, source)


def saved_until_done(program: Program) -> list[str]:
    """Save it more often than its timeout is long, until the call has returned; return what it says."""
    done = program.directory / "done"
    deadline = time.monotonic() + 60
    while not done.exists():
        assert time.monotonic() < deadline, "it waits for ever"
        time.sleep(PAUSE_SECONDS)
        taken_with(program)
    return done.read_text().split()


@pytest.mark.parametrize("name", CALLS)
def test_it_runs_out(tmp_path: Path, name: str) -> None:
    with waiting(tmp_path, name) as program:
        result, failed, took = saved_until_done(program)
        assert [int(result), int(failed)] == [*CALLS[name][1:]]
        assert float(took) >= TIMEOUT_SECONDS, "it ended too early"
        program.assert_unharmed()


def test_what_is_over_is_in_the_image(tmp_path: Path) -> None:
    with waiting(tmp_path, "sigtimedwait") as program:
        began = time.monotonic()
        over = 0
        for _ in range(2):
            time.sleep(PAUSE_SECONDS)
            image, _ = taken_with(program)
            [thread] = records(image, Thread)
            before, over = over, Registers.from_bytes(thread.registers).rax >> 32
            assert before + SURELY_SLEPT_MS <= over <= (time.monotonic() - began) * 1000
        program.kill_tree()
        restarted(image, program)
        assert saved_until_done(program)[:2] == ["-1", str(EAGAIN)]
