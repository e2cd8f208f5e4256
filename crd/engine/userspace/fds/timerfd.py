"""Timers read from a descriptor: timerfd_create(2)."""

from __future__ import annotations

import fcntl
import re
import struct
import time
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.kind import Kind, Making
from crd.errors import NativeError, RestartUnsupported
from crd.image.objects import TimerFd
from crd.native.syscall import NR, syscall
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.table import FileTable
    from crd.image.codec import Record

_ITIMERSPEC = struct.Struct("<4q")  # interval, value: seconds, nanoseconds
_NANOSECONDS = 1_000_000_000
_TFD_CLOEXEC = 0o2000000
_ABSTIME = 1
_TFD_IOC_SET_TICKS = 0x40085400
_WALL_CLOCKS = {time.CLOCK_REALTIME, 8}  # and CLOCK_REALTIME_ALARM
_MONOTONIC_OF = {time.CLOCK_MONOTONIC: time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME: time.CLOCK_BOOTTIME,
                 9: time.CLOCK_BOOTTIME}  # CLOCK_BOOTTIME_ALARM
_LOOKS_MAX = 100
_TIME = re.compile(r"\((\d+), (\d+)\)")


class TimerFds(Kind):
    """A TIMER_FD each: what is left runs on; only what was to come at a time of the wall clock comes then."""

    def recognises(self, one: Description) -> bool:
        """By its link."""
        return one.link == "anon_inode:[timerfd]"

    def dump(self, found: Sequence[Description], table: FileTable) -> Iterator[Record]:
        """Note the clock, what is left, and expirations that nobody has read."""
        del table
        for one in found:
            yield _dump(one)

    def make(self, making: Making) -> None:
        """Make it, unarmed; raises RestartUnsupported."""
        for record in making.wanted(TimerFd):
            try:
                fd = syscall(NR.TIMERFD_CREATE, record.clock, _TFD_CLOEXEC)
            except NativeError as error:
                raise RestartUnsupported(f"a timer of clock {record.clock}: {error.message}") from error
            making.add(record.objref, fd, record.flags)

    def arm(self, making: Making) -> None:
        """Start them with what was left, and put back the expirations, which starting takes away."""
        for record in making.wanted(TimerFd):
            fd = making.ours[record.objref]
            if record.value_ns:
                when = _now(record) + record.value_ns if record.set_flags & _ABSTIME else record.value_ns
                spec = _ITIMERSPEC.pack(*divmod(record.interval_ns, _NANOSECONDS), *divmod(when, _NANOSECONDS))
                syscall(NR.TIMERFD_SETTIME, fd, record.set_flags, spec, 0)
            if record.ticks:
                fcntl.ioctl(fd, _TFD_IOC_SET_TICKS, record.ticks.to_bytes(8, "little"))


def _now(record: TimerFd) -> int:
    """Return from when on what was left is counted."""
    if record.clock in _WALL_CLOCKS:
        return record.taken_realtime_ns
    return time.clock_gettime_ns(_MONOTONIC_OF[record.clock])


def _dump(one: Description) -> TimerFd:
    """Describe a timer that may expire at any moment: until two looks agree.

    A periodic timer whose expirations nobody reads stands still, and shows nothing left, until somebody asks for it.
    """
    ticks_before = -1
    for _ in range(_LOOKS_MAX):
        syscall(NR.TIMERFD_GETTIME, one.borrowed, bytearray(_ITIMERSPEC.size))
        taken_ns, shown = time.time_ns(), procfs.fdinfo("self", one.borrowed).extra
        ticks, value_ns, interval_ns = int(shown["ticks"]), _ns(shown["it_value"]), _ns(shown["it_interval"])
        if ticks == ticks_before and (value_ns or not interval_ns or not ticks):
            break
        ticks_before = ticks
    return TimerFd(objref=one.objref, flags=one.flags, owner=one.owner, clock=int(shown["clockid"]),
                   set_flags=int(shown["settime flags"], 8), ticks=ticks, value_ns=value_ns, interval_ns=interval_ns,
                   taken_realtime_ns=taken_ns)


def _ns(text: str) -> int:
    found = _TIME.fullmatch(text)
    assert found, text  # noqa: S101
    return int(found[1]) * _NANOSECONDS + int(found[2])
