"""Whether the kernel may merge equal pages of all memory of a process (PR_SET_MEMORY_MERGE, Linux 6.4)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crd.engine.userspace.questions import Question
from crd.image.profile import Merging
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel

_PR_SET_MEMORY_MERGE, _PR_GET_MEMORY_MERGE = 67, 68

QUESTION = Question(NR.PRCTL, (_PR_GET_MEMORY_MERGE, 0, 0, 0, 0))


def restart(plan: Plan, vessel: Vessel) -> Iterator[str]:
    """Let the kernel do so again, if the image says it; tell if it does not."""
    if plan.of(Merging):
        vessel.batch.call(NR.PRCTL, _PR_SET_MEMORY_MERGE, 1, 0, 0, 0, check=False)
        if (result := vessel.run()[-1]) < 0:
            yield f"equal pages of process {plan.pid} are not merged (PR_SET_MEMORY_MERGE): {os.strerror(-result)}"
