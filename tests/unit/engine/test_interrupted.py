"""System calls in progress: with which registers a restarted thread takes them up again."""

from __future__ import annotations

import pytest

from crd.engine.userspace.interrupted import begin_again
from crd.errors import MemoryFault
from crd.native.tracee import Registers, signed

READ, POLL, NANOSLEEP, FUTEX, CLOCK_NANOSLEEP, RESTART_SYSCALL = 0, 7, 35, 202, 230, 219
AT = 0x401002


class Code:
    """Memory that holds instructions in front of ``AT``."""

    def __init__(self, code: bytes = b"") -> None:
        self.code = code

    def read(self, address: int, length: int) -> bytes:
        assert address + length == AT
        if not self.code:
            raise MemoryFault("nothing is mapped there")
        return self.code.rjust(length, b"\x90")


def stopped(number: int, result: int, **registers: int) -> Registers:
    values = dict.fromkeys(Registers.__dataclass_fields__, 0)
    return Registers(**{**values, "rip": AT, "orig_rax": number, "rax": result % 2**64, **registers})


def again(registers: Registers, code: bytes = b"") -> Registers:
    return begin_again(registers, Code(code))  # type: ignore[arg-type]


@pytest.mark.parametrize("result", [-512, -513, -514])
def test_a_call_that_the_kernel_would_start_again_is(result: int) -> None:
    registers = again(stopped(READ, result, rdi=3))
    assert (registers.rax, registers.rip, signed(registers.orig_rax)) == (READ, AT - 2, -1)
    assert registers.rdi == 3


def test_a_call_that_is_over_stays_over() -> None:
    registers = again(stopped(READ, 17))
    assert (registers.rax, registers.rip) == (17, AT)


def test_a_thread_outside_of_any_call_goes_on_where_it_was() -> None:
    before = stopped(2**64 - 1, -512)
    registers = again(before)
    assert (registers.rax, registers.rip) == (before.rax, AT)


def test_a_sleep_goes_on_with_what_was_left() -> None:
    registers = again(stopped(NANOSLEEP, -516, rdi=0x1000, rsi=0x2000))
    assert (registers.rax, registers.rdi) == (NANOSLEEP, 0x2000)
    registers = again(stopped(CLOCK_NANOSLEEP, -516, rdi=1, rsi=0, rdx=0x1000, r10=0x2000))
    assert (registers.rax, registers.rdx) == (CLOCK_NANOSLEEP, 0x2000)


def test_a_sleep_without_a_remainder_is_slept_again() -> None:
    assert again(stopped(NANOSLEEP, -516, rdi=0x1000)).rdi == 0x1000
    absolute = again(stopped(CLOCK_NANOSLEEP, -516, rdi=1, rsi=1, rdx=0x1000, r10=0x2000))
    assert absolute.rdx == 0x1000


@pytest.mark.parametrize("number", [POLL, NANOSLEEP, FUTEX, CLOCK_NANOSLEEP])
def test_a_call_that_was_stopped_before_is_found_in_the_code(number: int) -> None:
    code = b"\xb8" + number.to_bytes(4, "little") + b"\x0f\x05"
    assert again(stopped(RESTART_SYSCALL, -516, rdi=0x7F0000001000), code).rax == number


@pytest.mark.parametrize(("number", "arguments"), [
    (CLOCK_NANOSLEEP, {"rdi": 1, "rsi": 0, "rdx": 0x7FFF0000}),
    (CLOCK_NANOSLEEP, {"rdi": 0, "rsi": 0, "rdx": 0x7FFF0000}),
    (FUTEX, {"rdi": 0x7FFF0000, "rsi": 0x80, "r10": 0x7FFF1000}),
    (FUTEX, {"rdi": 0x7FFF0000, "rsi": 0x189, "r10": 0x7FFF1000}),
    (POLL, {"rdi": 0x7FFF0000, "rsi": 2, "rdx": 1000}),
    (POLL, {"rdi": 0, "rsi": 0, "rdx": 1000}),
    (NANOSLEEP, {"rdi": 0x7FFF0000, "rsi": 0x7FFF0100}),
    (NANOSLEEP, {"rdi": 0x7FFF0000, "rsi": 0}),
])
def test_or_told_by_its_arguments(number: int, arguments: dict[str, int]) -> None:
    assert again(stopped(RESTART_SYSCALL, -516, **arguments)).rax == number
