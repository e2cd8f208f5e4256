"""Real processes that hold what stands in the way of a checkpoint."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crd.errors import Obstacle
from crd.native.syscall import kcmp
from crd.target import preflight
from tests.support import victims
from tests.support.victims import Program, until

if TYPE_CHECKING:
    from collections.abc import Iterator

PRELUDE = """
import ctypes, fcntl, mmap, os, select, signal, socket, struct, sys, tempfile, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = libc.mmap.restype = libc.shmat.restype = ctypes.c_long
libc.mmap.argtypes = [ctypes.c_long] * 6
libc.shmat.argtypes = [ctypes.c_long] * 3
def call(*numbers):
    result = libc.syscall(*(ctypes.c_long(n) if isinstance(n, int) else n for n in numbers))
    if result < 0:
        raise OSError(ctypes.get_errno(), "syscall %d" % numbers[0])
    return result
def map(fd, flags, length=4096, protection=3):
    result = libc.mmap(0, length, protection, flags, fd, 0)
    if result == -1:
        raise OSError(ctypes.get_errno(), "mmap")
    return result
def ready():
    open("ready", "w").close()
    while True:
        signal.pause()
def new(name):
    return os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
SHARED, PRIVATE, ANONYMOUS, HUGE, NORESERVE = 1, 2, 0x20, 0x40000, 0x4000
"""


@contextmanager
def provoked(directory: Path, source: str) -> Iterator[Program]:
    """A python that has done what ``source`` says and sleeps then."""
    with victims.python_script(directory, f"{PRELUDE}{source}\nready()\n") as program:
        def ready() -> bool:
            assert program.status().get("State", "Z")[0] != "Z", program.stderr()
            return (directory / "ready").exists()
        until("readiness", ready)
        yield program


def found(pid: int) -> dict[str, Obstacle]:
    """Obstacles by code."""
    obstacles = preflight.obstacles(pid, kcmp=kcmp)
    assert all(one.object and one.reason and one.remedy for one in obstacles)
    return {obstacle.code: obstacle for obstacle in obstacles}
