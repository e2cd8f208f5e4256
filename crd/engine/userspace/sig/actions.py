"""What a process does about each signal."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crd.engine.userspace.questions import OUT, Question
from crd.image.profile import SignalAction, SignalActions
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.questions import Answer
    from crd.native.batch import Batch

SIGNALS = 64
_ACTION = struct.Struct("<4Q")  # struct kernel_sigaction: handler, flags, restorer, mask
_SET_BYTES = 8
_SIG_IGN = 1
_UNCHANGEABLE = {9, 19}


QUESTIONS = [Question(NR.RT_SIGACTION, (number, 0, OUT, _SET_BYTES)) for number in range(1, SIGNALS + 1)]


def dump(answers: Sequence[Answer]) -> SignalActions:
    """Return all 64 actions, which QUESTIONS ask for."""
    actions = []
    for answer in answers:
        handler, flags, restorer, mask = _ACTION.unpack_from(answer.out)
        actions.append(SignalAction(handler=handler, flags=flags, restorer=restorer, mask=mask))
    return SignalActions(actions=actions)


def restart(record: SignalActions, batch: Batch) -> None:
    """Set all actions; ignoring each signal first flushes what the making of the task has left pending."""
    ignore = batch.data(_ACTION.pack(_SIG_IGN, 0, 0, 0))
    numbers = [number for number in range(1, SIGNALS + 1) if number not in _UNCHANGEABLE]
    for number in numbers:
        batch.call(NR.RT_SIGACTION, number, ignore, 0, _SET_BYTES)
    for number in numbers:
        action = record.actions[number - 1]
        given = batch.data(_ACTION.pack(action.handler, action.flags, action.restorer, action.mask))
        batch.call(NR.RT_SIGACTION, number, given, 0, _SET_BYTES, what=f"action of signal {number}")
