"""System calls by number, in this process."""

from __future__ import annotations

import os
import subprocess
from functools import cmp_to_key

import pytest

from crd.errors import NativeError
from crd.native.syscall import NR, kcmp, pidfd_getfd, syscall

KCMP_FILE, KCMP_VM = 0, 1


def test_numbers_and_buffers_go_in() -> None:
    assert syscall(NR.GETPID) == os.getpid()
    reading, writing = os.pipe()
    os.write(writing, b"bytes")
    buffer = bytearray(5)
    assert syscall(0, reading, buffer, 5) == 5
    assert buffer == b"bytes"
    os.close(reading)
    os.close(writing)


def test_an_error_is_raised_with_its_number() -> None:
    with pytest.raises(NativeError, match="Bad file descriptor") as error:
        syscall(NR.CLOSE, -1)
    assert error.value.errno == 9


def test_kcmp_knows_the_same_file() -> None:
    reading, writing = os.pipe()
    other = os.dup(reading)
    assert kcmp(os.getpid(), os.getpid(), KCMP_FILE, reading, other) == 0
    assert kcmp(os.getpid(), os.getpid(), KCMP_FILE, reading, writing) in {1, 2}
    assert kcmp(os.getpid(), os.getpid(), KCMP_VM) == 0
    for fd in (reading, writing, other):
        os.close(fd)


def test_kcmp_finds_among_many_who_has_the_same() -> None:
    children = [subprocess.Popen(["sleep", "infinity"]) for _ in range(6)]
    try:
        pids = [child.pid for child in children]
        in_order = sorted(pids[:4], key=cmp_to_key(lambda one, other: (0, -1, 1)[kcmp(one, other, KCMP_VM)]))
        ended = subprocess.Popen(["true"])
        ended.wait()
        asked = [*reversed(in_order), *pids[4:], ended.pid]
        assert kcmp.places(KCMP_VM, in_order, asked) == [3, 2, 1, 0, -1, -1, -1]
        assert kcmp.places(KCMP_VM, [], asked) == [-1] * len(asked)
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_descriptor_of_another_process() -> None:
    reading, writing = os.pipe()
    pidfd = os.pidfd_open(os.getpid())
    pulled = pidfd_getfd(pidfd, writing)
    assert not os.get_inheritable(pulled)
    os.write(pulled, b"x")
    assert os.read(reading, 1) == b"x"
    for fd in (reading, writing, pulled, pidfd):
        os.close(fd)
