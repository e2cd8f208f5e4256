"""Memory that is written is not executed (PR_SET_MDWE, Linux 6.3): what a process has given up for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.engine.userspace.questions import Question
from crd.image.profile import Mdwe
from crd.native.syscall import NR

if TYPE_CHECKING:
    from crd.engine.userspace.plan import Plan
    from crd.native.batch import Batch

_PR_SET_MDWE, _PR_GET_MDWE = 65, 66

QUESTION = Question(NR.PRCTL, (_PR_GET_MDWE, 0, 0, 0, 0))


def restart(plan: Plan, batch: Batch) -> None:
    """Have the process give it up again, if the image says it, when all of its memory is made."""
    for record in plan.of(Mdwe):
        batch.call(NR.PRCTL, _PR_SET_MDWE, record.denied, 0, 0, 0, what="prctl(PR_SET_MDWE)")
