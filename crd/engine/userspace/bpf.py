"""What a filter of seccomp(2) would say to a system call: classic BPF, followed along all ways that it may take.

Instructions are those of include/uapi/linux/bpf_common.h, and of these what seccomp_check_filter in kernel/seccomp.c
lets pass.  They only jump forward, so every way ends.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INSTRUCTION = struct.Struct("<HBBI")
"""struct sock_filter: code, jumps if true and if false, operand."""
_PROGRAM = struct.Struct("<H6xQ")

ALLOW, LOG, USER_NOTIFY = 0x7FFF_0000, 0x7FFC_0000, 0x7FC0_0000
_ACTION = 0xFFFF_0000
_ARCHITECTURE = 0xC000_003E  # AUDIT_ARCH_X86_64
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
_DATA_BYTES = 64

_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_IMM, _ABS, _MEM, _LEN = 0x00, 0x20, 0x60, 0x80
_FROM_X, _RETURN_A = 0x08, 0x10
_TXA = 0x80
_WORD = 0xFFFF_FFFF
_WAYS_MAX = 100_000

Value = int | None
"""A word; None: it may be any."""
_Way = tuple[int, Value, Value, tuple[Value, ...]]
"""Where it is, accumulator, index register, memory."""


def fprog(code: bytes, address: int) -> bytes:
    """Return struct sock_fprog of a program that is at an address."""
    return _PROGRAM.pack(len(code) // INSTRUCTION.size, address)


class TooManyWaysError(Exception):
    """It cannot be told what a program does."""


def program(data: bytes) -> list[tuple[int, int, int, int]]:
    """Return the instructions of a filter."""
    return list(INSTRUCTION.iter_unpack(data))


def verdicts(data: bytes, number: int, arguments: Mapping[int, int]) -> set[Value]:
    """Return all that a filter may answer to a call (SECCOMP_RET_*, without its data).

    Args:
        data: the program.
        number: of the call.
        arguments: those that are known.

    Raises:
        TooManyWaysError: it takes too many ways.
        IndexError: it is no program that the kernel would take.
    """
    code, words = program(data), _words(number, arguments)
    ways: list[_Way] = [(0, 0, 0, (0,) * 16)]
    seen = set(ways)
    found: set[Value] = set()
    while ways:
        way = ways.pop()
        operation, _, _, operand = code[way[0]]
        if operation & 7 == _RET:
            answer = way[1] if operation & 0x18 == _RETURN_A else operand
            found.add(None if answer is None else answer & _ACTION)
            continue
        for following in _follow(way, code[way[0]], words):
            if following not in seen:
                seen.add(following)
                ways.append(following)
        if len(seen) > _WAYS_MAX:
            raise TooManyWaysError
    return found


def may_notify(data: bytes) -> bool:
    """Whether a filter hands calls to a supervisor (SECCOMP_RET_USER_NOTIF)."""
    return any(operation & 7 == _RET and (operation & 0x18 == _RETURN_A or operand & _ACTION == USER_NOTIFY)
               for operation, _, _, operand in program(data))


def _words(number: int, arguments: Mapping[int, int]) -> dict[int, int]:
    """Return what is known of struct seccomp_data, by offset."""
    words = {_NUMBER_AT: number, _ARCHITECTURE_AT: _ARCHITECTURE}
    for index, value in arguments.items():
        at = _ARGUMENTS_AT + 8 * index
        words |= {at: value & _WORD, at + 4: value >> 32 & _WORD}
    return words


def _follow(way: _Way, instruction: tuple[int, int, int, int], words: Mapping[int, int]) -> Iterator[_Way]:
    """Yield where an instruction other than a return leads to."""
    at, accumulator, index, memory = way
    operation, if_true, if_false, operand = instruction
    kind, mode = operation & 7, operation & 0xE0
    if kind in {_LD, _LDX}:
        value = {_IMM: operand, _ABS: words.get(operand), _LEN: _DATA_BYTES}.get(mode, memory[operand & 15])
        yield (at + 1, value, index, memory) if kind == _LD else (at + 1, accumulator, value, memory)
    elif kind in {_ST, _STX}:
        value = accumulator if kind == _ST else index
        yield at + 1, accumulator, index, (*memory[:operand], value, *memory[operand + 1:])
    elif kind == _ALU:
        other = index if operation & _FROM_X else operand
        yield at + 1, _calculated(operation & 0xF0, accumulator, other), index, memory
    elif kind == _MISC:
        yield (at + 1, index, index, memory) if operation & 0xF8 == _TXA else (at + 1, accumulator, accumulator, memory)
    elif operation & 0xF0 == 0:
        yield at + 1 + operand, accumulator, index, memory
    else:
        holds = _holds(operation & 0xF0, accumulator, index if operation & _FROM_X else operand)
        for jump in ([if_true, if_false] if holds is None else [if_true if holds else if_false]):
            yield at + 1 + jump, accumulator, index, memory


def _calculated(how: int, one: Value, other: Value) -> Value:
    if how == 0x80:
        return None if one is None else -one & _WORD
    if one is None or other is None or (how == 0x30 and not other):
        return None
    results = {0x00: one + other, 0x10: one - other, 0x20: one * other, 0x30: one // (other or 1), 0x40: one | other,
               0x50: one & other, 0x60: one << (other & 31), 0x70: one >> (other & 31), 0xA0: one ^ other}
    return results[how] & _WORD


def _holds(how: int, one: Value, other: Value) -> bool | None:
    if one is None or other is None:
        return None
    return {0x10: one == other, 0x20: one > other, 0x30: one >= other, 0x40: bool(one & other)}[how]
