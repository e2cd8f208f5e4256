"""Process numbers: who has one, and waiting for those that are about to become free."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.errors import PidInUse, TargetError, TargetGone
from crd.target import procfs
from crd.target.wording import process_name
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from crd.target.procfs import Stat

PATIENCE_SECONDS = 3.0
"""A number stays taken until the task has come to its end and its parent has reaped it."""

_POLL_SECONDS = 0.02
_PF_EXITING = 0x4
_FLAGS = 9  # field of stat
_SIGKILL_BIT = 1 << 8


@dataclass(frozen=True, slots=True)
class _Holder:
    """Who has a number, in words; ``leaving``: not for long."""

    number: int
    who: str
    leaving: bool


def await_free(numbers: Collection[int], *, besides: int = 0) -> None:
    """Wait until nothing has any of the numbers; for longer than a moment only if what has one is on its way out.

    A number is taken by a process, a thread, a zombie, or a process group or session whose leader may be long gone.

    Args:
        numbers: of processes and threads.
        besides: a process that may have them.

    Raises:
        PidInUse: one is in use, and by whom.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while holder := _holder(numbers, besides):
        if not holder.leaving or time.monotonic() > deadline:
            raise PidInUse(f"pid {holder.number} is in use by {holder.who}", pid=holder.number,
                           hint="End it, or use --new-pids or --pidns.")
        time.sleep(_POLL_SECONDS)


def in_use(numbers: Collection[int]) -> Iterator[PidInUse]:
    """Tell which of the numbers are taken, and by whom; what is on its way out is waited for."""
    wanted = set(numbers)
    while wanted:
        try:
            await_free(sorted(wanted))
        except PidInUse as error:
            wanted.remove(error.details["pid"])
            yield error
        else:
            return


def _holder(numbers: Collection[int], besides: int) -> _Holder | None:
    for number in numbers:
        if holder := _task(number, besides):
            return holder
    return _group(numbers)


def _task(number: int, besides: int) -> _Holder | None:
    """Return the process or thread of that number."""
    try:
        stat, status = procfs.stat(number), procfs.status(number)
    except TargetGone:
        return None
    except TargetError:
        return _Holder(number, "a process that cannot be looked at", leaving=False)
    if status.process_id == besides:
        return None
    name = f"{printable(stat.comm)} (uid {status.uids[0]})"
    if stat.state == "Z":
        return _Holder(number, f"a zombie, {name}, not yet reaped by {process_name(stat.parent_pid)}", leaving=True)
    killed = (int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)) & _SIGKILL_BIT
    thread = "" if status.process_id == number else f"thread of pid {status.process_id}, "
    return _Holder(number, thread + name, leaving=bool(killed) or _is_exiting(stat))


def _group(numbers: Collection[int]) -> _Holder | None:
    """Return somebody whose process group or session has one of the numbers; one that stays, if there is one."""
    wanted, leaving = set(numbers), None
    for pid in procfs.pids():
        try:
            stat = procfs.stat(pid)
        except TargetError:
            continue
        if taken := wanted & {stat.process_group, stat.session}:
            what = f"the process group or session of {process_name(pid)}"
            if not _is_exiting(stat):
                return _Holder(taken.pop(), what, leaving=False)
            what += f", a zombie not yet reaped by {process_name(stat.parent_pid)}"
            leaving = _Holder(taken.pop(), what, leaving=True)
    return leaving


def _is_exiting(stat: Stat) -> bool:
    return stat.state in "ZX" or bool(stat.field(_FLAGS) & _PF_EXITING)

