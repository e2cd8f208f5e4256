"""What only a task itself can be asked: system calls made by the target, or by its snapshot child for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from crd.native.inject import CALLS_MAX, Call, Scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.native.batch import Batch
    from crd.native.inject import Injector, ScriptResult
    from crd.native.tracee import Registers

_QUESTIONS_MAX = 128
_OUT = 8 * _QUESTIONS_MAX
"""Behind the results of so many questions."""
_OUT_BYTES = 32
"""Each byte is one more that a stop maps, writes and reads in every thread."""


class Out:
    """As an argument: where the call may write up to 32 bytes."""


OUT = Out()


@dataclass(frozen=True, slots=True)
class Question:
    """A system call that only asks."""

    number: int
    arguments: tuple[int | Out, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What it returned, negative errno for an error, and what it wrote."""

    result: int
    out: bytes

    def number(self, offset: int = 0, length: int = 8) -> int:
        """Return an unsigned number from what was written."""
        return int.from_bytes(self.out[offset:offset + length], "little")


class Asker(Protocol):
    """Somebody who can be asked."""

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Put the questions in order."""
        ...


class TargetAsker:
    """Asks a thread of the stopped target itself, by stubs."""

    def __init__(self, injector: Injector, tid: int, registers: Registers) -> None:
        """Ask the thread that has these registers."""
        self._injector = injector
        self._tid = tid
        self._registers = registers

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Put the questions, a few a stub; raises as ``Injector.script``."""
        answers = []
        for at in range(0, len(questions), CALLS_MAX):
            answers += answered(self._injector.script(self._tid, self._registers, calls(questions[at:at + CALLS_MAX])))
        return answers


def calls(questions: Sequence[Question]) -> list[Call]:
    """Return up to 128 questions as calls of a stub, whose scratch area has ``scratch_bytes``."""
    if len(questions) > _QUESTIONS_MAX:
        raise ValueError("too many questions at once")
    return [Call(question.number, tuple(Scratch(_OUT + index * _OUT_BYTES) if isinstance(argument, Out) else argument
                                        for argument in question.arguments))
            for index, question in enumerate(questions)]


def scratch_bytes(n_questions: int) -> int:
    """Return how large the scratch area has to be."""
    return _OUT + n_questions * _OUT_BYTES


def answered(done: ScriptResult, first: int = 0, end: int | None = None) -> list[Answer]:
    """Return the answers, or some of them, of calls that were made by ``calls``."""
    return [Answer(done.results[index], done.scratch[_OUT + index * _OUT_BYTES:_OUT + (index + 1) * _OUT_BYTES])
            for index in range(len(done.results))[first:end]]


class SnapshotAsker:
    """Asks the snapshot child, which has most of what its parent had."""

    def __init__(self, batch: Batch, tid: int) -> None:
        """Ask the child ``tid`` through a batch."""
        self._batch = batch
        self._tid = tid

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Put all questions in one batch."""
        outs = []
        for question in questions:
            out = self._batch.data(bytes(_OUT_BYTES))
            outs.append(out)
            self._batch.call(question.number, *[out if isinstance(argument, Out) else argument
                                                for argument in question.arguments], check=False)
        results = self._batch.run(self._tid)
        return [Answer(result, self._batch.read(out, _OUT_BYTES)) for result, out in zip(results, outs, strict=True)]
