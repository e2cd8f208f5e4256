"""A thread on its way through a stub: from one stop to the next, and back to where it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.errors import InjectionInterrupted, TraceeGone
from crd.native import tracee

if TYPE_CHECKING:
    from crd.native.tracee import Registers


def go_through(tid: int, original: Registers, stops: int) -> None:
    """Let the thread run through a number of system-call stops.

    Raises:
        InjectionInterrupted: a signal is due.
        TraceeGone: it ended.
    """
    stop = tracee.syscall_stops(tid, stops)
    if stop.ended:
        raise TraceeGone(f"task {tid} ended", tid=tid)
    if stop.is_signal:
        tracee.set_registers(tid, original)
        raise interrupted(tid, stop.signal)


def come_home(tid: int, original: Registers) -> None:
    """Bring the thread from an exit stop to an event stop, and put its registers back.

    From there the kernel restarts an interrupted call exactly, restart block included, once it is let go: unlinking
    takes it through get_signal.

    Raises:
        InjectionInterrupted, TraceeGone: as ``go_through``.
    """
    tracee.interrupt(tid)
    tracee.cont(tid)
    stop = tracee.wait(tid)
    if stop.ended:
        raise TraceeGone(f"task {tid} ended", tid=tid)
    tracee.set_registers(tid, original)
    if stop.is_signal:
        raise interrupted(tid, stop.signal)


def interrupted(tid: int, number: int) -> InjectionInterrupted:
    """Return the error that a signal is due for a thread."""
    return InjectionInterrupted(f"signal {number} is due for task {tid}", signal=number, tid=tid)
