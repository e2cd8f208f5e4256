"""What programs have of crd: two numbers, in C and in Python."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from crd import selfckpt, syscalls

PROGRAM = r"""
#include <crd.h>
#include <errno.h>
#include <stdio.h>

int main(void)
{
    long results[] = {crd_checkpoint(0, 1, 0), errno == ENOSYS, crd_restart(0, 0, 0), errno == ENOSYS};
    printf("%ld %ld %ld %ld\n", results[0], results[1], results[2], results[3]);
}
"""


def test_a_call_that_a_signal_has_interrupted_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [InterruptedError(errno.EINTR, ""), InterruptedError(errno.EINTR, ""), 7,
                             InterruptedError(errno.EINTR, ""), OSError(errno.ENOSYS, "")]

    def syscall(*_: int) -> object:
        if isinstance(answer := answers.pop(0), OSError):
            raise answer
        return answer

    monkeypatch.setattr(syscalls, "syscall", syscall)
    assert selfckpt.checkpoint(1) == 7
    with pytest.raises(OSError) as raised:
        selfckpt.restart(0)
    assert (raised.value.errno, answers) == (errno.ENOSYS, [])


@pytest.mark.parametrize(("compiler", "language"), [("gcc -std=c99", "c"), ("gcc -std=gnu17", "c"), ("g++", "c++")])
def test_the_header_compiles_without_a_warning_and_without_crd_there_is_no_call(tmp_path: Path, compiler: str,
                                                                               language: str) -> None:
    where = subprocess.run([sys.executable, "-m", "crd.selfckpt"], capture_output=True, text=True, check=True).stdout
    subprocess.run([*compiler.split(), "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", where.strip(), "-x", language,
                    "-o", tmp_path / "program", "-"], input=PROGRAM.encode(), check=True)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True)
    assert done.stdout == "-1 1 -1 1\n"


def test_header_and_module_mean_the_same_calls() -> None:
    numbers = dict(re.findall(r"#define CRD_NR_(\w+) (\d+)", (selfckpt.INCLUDE / "crd.h").read_text()))
    assert numbers == {"CHECKPOINT": str(syscalls.NR_CHECKPOINT), "RESTART": str(syscalls.NR_RESTART)}


@pytest.mark.parametrize("call", [selfckpt.checkpoint, selfckpt.restart])
def test_without_crd_there_is_no_call(call) -> None:
    with pytest.raises(OSError) as raised:
        call(1)
    assert raised.value.errno == errno.ENOSYS


def test_the_module_loads_nothing_that_is_compiled() -> None:
    script = "import sys, crd.selfckpt; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {name for name in loaded if name.startswith(("crd.native", "cffi", "msgspec", "asyncio"))}


def run(number: int, architecture: int) -> int:
    """Run the filter as the kernel does, for a call."""
    data = struct.pack("<iI", number, architecture)
    accumulator, at = 0, 0
    instructions = list(struct.iter_unpack("<HBBI", syscalls.PROGRAM))
    while True:
        code, if_true, if_false, operand = instructions[at]
        at += 1
        match code:
            case 0x20:
                accumulator = int.from_bytes(data[operand:operand + 4], "little")
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x25:
                at += if_true if accumulator > operand else if_false
            case 0x06:
                return operand
            case _:
                raise AssertionError(code)


def test_the_filter_tells_of_two_calls_and_harms_none() -> None:
    told = {(number, architecture) for number in (*range(-2, 1024), *range(1 << 30, (1 << 30) + 1024))
            for architecture in (syscalls.X86_64, 0x40000003) if run(number, architecture) != 0x7FFF0000}
    assert told == {(387, syscalls.X86_64), (388, syscalls.X86_64)}
    assert {run(*call) for call in told} == {0x7FC00000}


@pytest.mark.root
@pytest.mark.parametrize(("uid", "gives_up_privileges"), [(0, False), (65534, True)])
def test_who_has_no_privileges_gives_them_up_for_good(uid: int, gives_up_privileges: bool) -> None:  # noqa: FBT001
    child = os.fork()
    if not child:
        status = 1
        with suppress(BaseException):
            os.setresuid(uid, uid, uid)
            syscalls.install()
            text = Path("/proc/self/status").read_text()
            status = not ("\nSeccomp_filters:\t1\n" in text and f"\nNoNewPrivs:\t{gives_up_privileges:d}\n" in text)
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
