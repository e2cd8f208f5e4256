"""Losing no time while a target is stopped."""

from __future__ import annotations

import gc
import os
from contextlib import suppress

from crd.engine.userspace.touched import Touched

_FIFO_PRIORITY = 10


class Haste:
    """Ours, from ``hurry`` to ``relax``.

    That is SCHED_FIFO, since whoever is let go competes with us; no garbage collection; idle processors that stay awake
    (a latency request, admin-guide/pm/cpuidle of the kernel), since to wake one takes longer than what it is wanted
    for; and pages of ours that need not be copied first.

    Attributes:
        touched: by workers before this one; None: it was not forked by a nursery.
    """

    touched: Touched | None = None

    @classmethod
    def share(cls) -> None:
        """Have processes that are forked from this one learn from each other which pages a stop touches."""
        cls.touched = Touched()

    def __init__(self) -> None:
        """Be in no hurry yet."""
        self._latency_request = -1
        self._before: tuple[int, os.sched_param, bool] | None = None

    def hurry(self) -> None:
        """Begin."""
        if self.touched:
            self.touched.copy()
        with suppress(OSError):
            self._latency_request = os.open("/dev/cpu_dma_latency", os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._latency_request, bytes(4))
        self._before = (os.sched_getscheduler(0), os.sched_getparam(0), gc.isenabled())
        gc.disable()
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_FIFO_PRIORITY))

    def relax(self) -> None:
        """Run as before; nothing if that is so already."""
        if self._before:
            (policy, parameter, collecting), self._before = self._before, None
            with suppress(PermissionError):
                os.sched_setscheduler(0, policy, parameter)
            if collecting:
                gc.enable()
            if self.touched:
                self.touched.note()
        if self._latency_request >= 0:
            os.close(self._latency_request)
            self._latency_request = -1
