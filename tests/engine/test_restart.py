"""A program killed and restarted is what it was, to the last detail that it can see."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from crd.engine.api import wait_for_root
from crd.engine.userspace.timers import posix
from crd.target import procfs
from tests.engine.images import restarted, restarted_elsewhere, taken
from tests.engine.programs import compiled, interpreted
from tests.support.victims import NAMES, Victim, until

pytestmark = pytest.mark.root

DO_NOT_KNOW_THEIR_NUMBERS = ("fpu", "memory", "pipes", "rwhog", "vector")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"stopped", "rwhog"}])
def test_in_a_namespace_of_its_own(tmp_path: Path, name: str) -> None:
    with Victim(name, tmp_path) as victim:
        image = taken(victim)
        result = restarted_elsewhere(image, victim, "--pidns")
        assert result["root_pid"] not in result["pids"].values()
        victim.assert_unharmed()
        victim.verify()


@pytest.mark.parametrize("name", DO_NOT_KNOW_THEIR_NUMBERS)
def test_under_new_numbers(tmp_path: Path, name: str) -> None:
    with Victim(name, tmp_path) as victim:
        original = victim.pid
        result = restarted(taken(victim, kill=False), victim, pids="new")
        assert result.root_pid == result.pids[original] != original
        os.kill(original, signal.SIGKILL)
        victim.assert_unharmed()
        victim.verify()


@pytest.mark.parametrize("name", ["idle", "idle-musl"])
def test_what_proc_says_of_it_is_as_it_was(tmp_path: Path, name: str) -> None:
    with Victim(name, tmp_path) as victim:
        def said() -> dict[str, object]:
            flags = procfs.vm_flags(victim.pid)
            files = ("auxv", "cmdline", "comm", "coredump_filter", "environ", "limits", "oom_score_adj", "personality",
                     "timerslack_ns")
            return {"exe": procfs.read_link(victim.pid, "exe"), "root": procfs.read_link(victim.pid, "root"),
                    "cwd": procfs.read_link(victim.pid, "cwd"),
                    "stack": [flags[entry.start] for entry in procfs.maps(victim.pid) if entry.path == "[stack]"],
                    **{file: procfs.read_bytes(victim.pid, file) for file in files}}

        before = said()
        assert before["environ"]
        restarted(taken(victim), victim)
        assert said() == before


TELLS_THE_TIME = """
import os, time
while True:
    if not os.path.exists("ready"): open("ready", "w").close()
    earliest, now, latest = time.time(), time.monotonic(), time.time()
    with open("log", "a") as log:
        log.write(f"{os.getpid()} {os.path.basename(os.readlink('/proc/self/ns/pid'))} "
                  f"{earliest - now} {latest - now}\\n")
    time.sleep(0.02)
"""


def test_two_copies_in_namespaces_beside_the_original(tmp_path: Path) -> None:
    """Each has the number of the original, and a clock that has stood still since the image was taken."""
    with interpreted(tmp_path, TELLS_THE_TIME) as program:
        begun = time.monotonic()
        image = taken(program, kill=False)
        done = time.monotonic()
        time.sleep(0.3)  # that much older the image must not look to the copies
        original, stood = program.pid, {os.readlink(f"/proc/{program.pid}/ns/pid"): (0.0, 0.0)}
        for _ in range(2):
            least = time.monotonic() - done
            copy = restarted_elsewhere(image, program, "--pidns")["root_pid"]
            stood[os.readlink(f"/proc/{copy}/ns/pid")] = least, time.monotonic() - begun
        assert len(stood) == 3

        def lines() -> list[list[str]]:
            return [line.split() for line in (tmp_path / "log").read_text().split("\n")[:-1]]

        def behind(where: str) -> tuple[float, float]:
            """Return by how much its clock is behind that of the day: at least, and at most."""
            told = [line for line in lines() if line[1] == where]
            return max(float(line[2]) for line in told), min(float(line[3]) for line in told)

        until("all three", lambda: {line[1] for line in lines()} == stood.keys())
        assert {line[0] for line in lines()} == {str(original)}
        usual = behind(os.readlink(f"/proc/{original}/ns/pid"))
        for where, (least, most) in stood.items():
            now = behind(where)
            assert now[1] - usual[0] >= least - CLOCKS_APART_SECONDS, "it did not stand still"
            assert now[0] - usual[1] <= most + CLOCKS_APART_SECONDS, "it was set back"


CLOCKS_APART_SECONDS = 0.01
"""As much the clock of the day may be set right meanwhile."""


LATER_WRITABLE = """
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
with open("data", "wb") as file: file.write(b"x" * 8192)
fds = os.open("data", os.O_RDWR), os.open("data", os.O_RDONLY)
areas = [libc.mmap(None, ctypes.c_size_t(4096), 1, 1, fd, ctypes.c_size_t(4096 * n)) for n, fd in enumerate(fds)]
for fd in fds: os.close(fd)
open("ready", "w").close()
import time
while not os.path.exists("go"): time.sleep(0.01)
results = [libc.mprotect(area, 4096, 3) for area in areas]
ctypes.memset(areas[0], ord("y"), 4096)
open("done", "w").write(f"{results}")
rest()
"""


def test_a_shared_file_mapping_may_still_become_writable_or_not(tmp_path: Path) -> None:
    with interpreted(tmp_path, LATER_WRITABLE) as program:
        restarted(taken(program), program)
        (tmp_path / "go").touch()
        until("it to try", lambda: (tmp_path / "done").exists() and (tmp_path / "done").read_text())
        assert (tmp_path / "done").read_text() == "[0, -1]"
        assert (tmp_path / "data").read_bytes() == b"y" * 4096 + b"x" * 4096


SHARED_AND_LOCKED = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void)
{
    char *shared[40];
    char *guard = mmap(0, 3 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    mprotect(guard, 1 << 12, PROT_NONE);
    for (int i = 0; i < 40; i++) {
        shared[i] = mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        memset(shared[i] + (2 << 20), i + 1, 1 << 16);
    }
    if (mlock(guard + (1 << 12), 2 << 12) || (mlock(guard, 1 << 12), 0))
        return 1;
    fclose(fopen("ready", "w"));
    while (access("go", F_OK))
        usleep(1000);
    for (int i = 0; i < 40; i++)
        for (int at = 0; at < 4 << 20; at++)
            if (shared[i][at] != (at >= 2 << 20 && at < (2 << 20) + (1 << 16) ? i + 1 : 0))
                abort();
    rename("go", "gone");
    for (;;)
        pause();
}
"""


def test_many_shared_objects_and_locked_guard_pages(tmp_path: Path) -> None:
    with compiled(tmp_path, SHARED_AND_LOCKED) as program:
        locked = program.status()["VmLck"]
        assert locked != "0 kB"
        restarted(taken(program), program)
        assert program.status()["VmLck"] == locked
        (tmp_path / "go").touch()
        until("it to look", (tmp_path / "gone").exists)


TIMERS = """
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
    timer_t timers[7];
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    struct itimerspec left = {.it_value.tv_sec = 5000};

    for (int i = 0; i < 7; i++)
        timer_create(CLOCK_MONOTONIC, &event, &timers[i]);
    for (int i = 0; i < 7; i += 2)
        timer_delete(timers[i]);
    timer_settime(timers[5], 0, &left, NULL);
    fclose(fopen("ready", "w"));
    for (;;)
        pause();
}
"""


@pytest.mark.parametrize("choose", [True, False], ids=["chosen", "in turn"])
def test_numbers_of_posix_timers(tmp_path: Path, *, choose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if choose and not posix.can_choose_numbers():
        pytest.skip("this kernel has no PR_TIMER_CREATE_RESTORE_IDS (6.15)")
    monkeypatch.setattr(posix, "can_choose_numbers", lambda: choose)
    with compiled(tmp_path, TIMERS) as program:
        before = Path(f"/proc/{program.pid}/timers").read_text()
        assert before.count("ID: ") >= 3
        restarted(taken(program), program)
        assert Path(f"/proc/{program.pid}/timers").read_text() == before


PENDING_ALARM = """
import os, signal

alarms = []
signal.signal(signal.SIGALRM, lambda *_: (alarms.append(1), open(f"alarm{len(alarms)}", "w").close()))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.020)
while signal.SIGALRM not in signal.sigpending():
    pass
open("ready", "w").close()
while not os.path.exists("go"):
    pass
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
rest()
"""


def test_a_periodic_alarm_that_is_pending_goes_on(tmp_path: Path) -> None:
    with interpreted(tmp_path, PENDING_ALARM) as program:
        restarted(taken(program), program)
        (tmp_path / "go").touch()
        until("third alarm", (tmp_path / "alarm3").exists)


OWNERS = """
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static int own(int kind, int pid)
{
    int fd = open("data", O_RDWR | O_CREAT, 0600);
    int owner[2] = {kind, pid};

    fcntl(fd, 15 /* F_SETOWN_EX */, owner);
    fcntl(fd, 10 /* F_SETSIG */, 40);
    return fd;
}

static volatile int tid, fds[4];

static void show(const char *name)
{
    FILE *file = fopen("new", "w");

    for (int i = 0; i < 4; i++) {
        int owner[2] = {-1, -1};
        fcntl(fds[i], 16 /* F_GETOWN_EX */, owner);
        fprintf(file, "%d %s %d\\n", owner[0], owner[1] == tid ? "tid" : owner[1] == getpid() ? "pid" : "?",
                fcntl(fds[i], 11 /* F_GETSIG */));
    }
    fclose(file);
    rename("new", name);
}

static void *work(void *argument)
{
    tid = (int)syscall(SYS_gettid);
    for (;;)
        pause();
    return argument;
}

int main(void)
{
    pthread_t thread;

    pthread_create(&thread, NULL, work, NULL);
    while (!tid)
        usleep(100);
    fds[0] = own(0, tid), fds[1] = own(1, getpid()), fds[2] = own(2, getpgrp()), fds[3] = own(1, 1);
    show("ready");
    while (access("go", F_OK))
        usleep(1000);
    tid = tid;
    show("after");
    for (;;)
        pause();
}
"""


def test_owners_of_descriptors(tmp_path: Path) -> None:
    with compiled(tmp_path, OWNERS) as program:
        before = (tmp_path / "ready").read_text()
        assert before == "0 tid 40\n1 pid 40\n2 pid 40\n1 ? 40\n"
        result = restarted(taken(program), program)
        (tmp_path / "go").touch()
        until("its answer", (tmp_path / "after").exists)
        assert (tmp_path / "after").read_text() == before.replace("1 ?", "0 ?"), "init is no owner for a copy"
        assert [note for note in result.notes if "SIGIO" in note and "pid 1" in note]


def test_a_parent_death_signal_is_kept_where_the_parent_stays(tmp_path: Path) -> None:
    script = """
import ctypes, os, signal, time
libc = ctypes.CDLL(None)
libc.prctl(1, signal.SIGTERM, 0, 0, 0)
open("ready", "w").close()
while True:
    time.sleep(0.01)
    signals = ctypes.c_int(-1)
    libc.prctl(2, ctypes.byref(signals), 0, 0, 0)
    try:  # one step, and no file is held open, whenever the checkpoint comes
        os.symlink(str(signals.value), "death-signal")
    except FileExistsError:
        pass
"""
    with interpreted(tmp_path, script) as program:
        image = taken(program)
        said = tmp_path / "death-signal"
        for reap, expected in ((True, signal.SIGTERM), (False, 0)):
            result = restarted(image, program, reap=reap)
            assert reap != any("its parent ends" in note for note in result.notes)
            for answer in ("an answer, perhaps to what it asked before the checkpoint", "its answer"):
                said.unlink(missing_ok=True)
                until(answer, said.is_symlink)
            assert str(said.readlink()) == str(int(expected))
            program.kill()
        restarted_elsewhere(image, program)  # crd, its parent, has ended
        said.unlink(missing_ok=True)
        until("it to live on", said.is_symlink)


def test_a_stop_that_was_ended_during_the_checkpoint(tmp_path: Path) -> None:
    """SIGCONT came while the stopped task was traced: in the image it is stopped, with SIGCONT pending."""
    from crd.engine.userspace.tree import frozen

    program = interpreted(tmp_path, "rest()")
    with program:
        os.kill(program.pid, signal.SIGSTOP)
        until("stop", lambda: program.status()["State"].startswith("T"))
        with frozen(program.pid, 5.0) as tree:
            assert tree.root.leader.stop.is_group_stop
        image = taken(program, kill=False)
        os.kill(program.pid, signal.SIGKILL)
        program.wait_gone()
        restarted(image, program)
        until("stop", lambda: program.status()["State"].startswith("T"))
        os.kill(program.pid, signal.SIGCONT)
        until("it to run", program.is_running)


def test_the_status_of_the_root_not_of_whom_it_leaves_behind(tmp_path: Path) -> None:
    script = """
import os, sys, time
open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
if os.fork() == 0:
    os.setsid()
    time.sleep(0.5)
    os._exit(0)
sys.exit(7)
"""
    with interpreted(tmp_path, script) as program:
        import subprocess

        from tests.support.daemon import BIN

        image = taken(program)
        waiting = subprocess.Popen([BIN / "crd", "restart", "-i", image, "--pidns", "--wait"],
                                   stdout=subprocess.PIPE, text=True)
        assert waiting.stdout
        program.restarted_as(int(waiting.stdout.readline()))
        (tmp_path / "go").touch()
        assert waiting.wait(timeout=60) == 7
        waiting.stdout.close()


def test_wait_for_root_tells_signals(tmp_path: Path) -> None:
    with interpreted(tmp_path, "rest()") as program:
        result = restarted(taken(program), program, pids="new")
        os.kill(result.root_pid, signal.SIGTERM)
        assert wait_for_root(result) == 128 + signal.SIGTERM
