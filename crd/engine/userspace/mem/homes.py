"""Shared memory that is being made: we have all of it mapped until it is filled and every process has its parts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.engine.userspace.mem import huge
from crd.errors import NativeError, RestartError
from crd.image.objects import SharedMemory
from crd.image.profile import VMA_SHARED_MEMORY
from crd.image.sysv import SysvMemory
from crd.native.syscall import NR, syscall

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.plan import Plan

_SHARED_ANONYMOUS, _NORESERVE = 1 | 0x20, 0x4000
_READ_WRITE = 3


@dataclass(frozen=True, slots=True)
class Home:
    """Where we have a shared memory object, and our descriptor of it, by which a process maps its parts."""

    address: int
    bytes: int
    fd: int


class Homes:
    """The homes of shared memory by objref.  A context manager; whoever has mapped the memory keeps it."""

    def __init__(self, plans: Sequence[Plan], broker: Broker) -> None:
        """Make what the processes map; System V's has another way (``sysv``)."""
        self._plans = plans
        self._broker = broker
        self._homes: dict[int, Home] = {}

    def __enter__(self) -> Self:
        areas = [vma for plan in self._plans for vma in plan.vmas if vma.kind == VMA_SHARED_MEMORY]
        root = self._plans[0]
        wanted = {vma.objref for vma in areas} - {record.objref for record in root.of(SysvMemory)}
        unreserved = {vma.objref for vma in areas if "nr" in vma.flags.split()}
        of_huge_pages = {vma.objref for vma in areas if huge.has(vma)}
        try:
            for record in root.of(SharedMemory):
                if record.objref in wanted:
                    self._make(record, (_NORESERVE if record.objref in unreserved else 0)
                               | (huge.MAP_FLAGS if record.objref in of_huge_pages else 0))
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._leave()

    def __getitem__(self, objref: int) -> Home:
        """Return the home of an object; raises RestartError if no process maps it."""
        if objref not in self._homes:
            raise RestartError(f"nobody maps the shared memory object {objref} of the image")
        return self._homes[objref]

    def __contains__(self, objref: int) -> bool:
        return objref in self._homes

    def _make(self, record: SharedMemory, flags: int) -> None:
        try:
            address = syscall(NR.MMAP, 0, record.bytes, _READ_WRITE, _SHARED_ANONYMOUS | flags, -1, 0)
        except NativeError as error:
            raise RestartError(f"making shared memory: {error.message}", errno=error.errno) from error
        self._homes[record.objref] = Home(address, record.bytes, -1)
        where = f"/proc/self/map_files/{address:x}-{address + record.bytes:x}"
        fd = self._broker.hold(os.open(where, os.O_RDWR | os.O_CLOEXEC))
        self._homes[record.objref] = Home(address, record.bytes, fd)

    def _leave(self) -> None:
        for home in self._homes.values():
            syscall(NR.MUNMAP, home.address, home.bytes)
        self._homes.clear()
