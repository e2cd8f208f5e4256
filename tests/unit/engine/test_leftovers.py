"""What would be left of a call is noticed, whatever it is."""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from crd.engine.leftovers import Leftovers

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root


def ended_child() -> None:
    if not os.fork():
        os._exit(0)


def another_file_in_place_of_one() -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def pending_signal() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.kill(os.getpid(), signal.SIGUSR1)


def locked_memory() -> None:
    kept.append(mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x2000))  # MAP_LOCKED


def file_system_of_its_own() -> None:
    import ctypes

    assert ctypes.CDLL(None).unshare(0x0002_0000) == 0  # CLONE_NEWNS


def processor() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


kept: list[object] = []
LEAVE: dict[str, tuple[Callable[[], object], str]] = {
    "a descriptor": (lambda: os.open(os.devnull, os.O_RDONLY), "descriptors"),
    "another file": (another_file_in_place_of_one, "descriptors"),
    "a socket": (lambda: kept.append(socket.socket()), "descriptors"),
    "a child": (lambda: kept.append(subprocess.Popen(["sleep", "60"], start_new_session=True)), "children"),
    "an ended child": (ended_child, "children"),
    "a thread": (lambda: threading.Thread(target=time.sleep, args=(60,), daemon=True).start(), "Threads"),
    "urgency": (lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)), "scheduling"),
    "a nice value": (lambda: os.nice(3), "scheduling"),
    "a processor": (processor, "scheduling"),
    "a namespace": (file_system_of_its_own, "namespaces"),
    "a directory": (lambda: os.chdir("/proc"), "directories"),
    "a umask": (lambda: os.umask(0o123), "Umask"),
    "an identity": (lambda: os.setresgid(-1, 65534, -1), "Gid"),
    "an identity that may not look": (lambda: os.setresuid(-1, 65534, -1), "unknown"),
    "a blocked signal": (lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}), "SigBlk"),
    "an ignored signal": (lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN), "SigIgn"),
    "a pending signal": (pending_signal, "ShdPnd"),
    "a timer": (lambda: signal.setitimer(signal.ITIMER_REAL, 3600), "timers"),
    "a limit": (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)), "limits"),
    "locked memory": (locked_memory, "VmLck"),
    "memory": (lambda: kept.append(bytearray(100 << 20)), "memory"),
}


def in_a_child(what: Callable[[], object]) -> bytes:
    """Do something in a process of its own, and return what it finds left of that."""
    answer, told = os.pipe()
    fcntl.fcntl(answer, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            leftovers = Leftovers()
            assert leftovers.found() == []
            what()
            os.write(told, ",".join(leftovers.found()).encode())
        finally:
            for one in kept:
                if isinstance(one, subprocess.Popen):
                    one.kill()
            os._exit(0)
    os.close(told)
    with os.fdopen(answer, "rb") as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    return found


@pytest.mark.parametrize("left", LEAVE)
def test_what_is_left_is_found(left: str) -> None:
    leave, name = LEAVE[left]
    assert name in in_a_child(leave).decode().split(",")


def test_what_was_closed_ended_and_given_back_is_not_left() -> None:
    def use() -> None:
        with open(os.devnull, "rb"), socket.socket():
            subprocess.run(["true"], check=True)
        bytearray(100 << 20)

    assert in_a_child(use) == b""
