"""The memory of other processes, in runs of (address, bytes)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from crd.errors import MemoryFault, TargetGone
from crd.native.check import call
from crd.native.ffi import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

Run = tuple[int, int]
"""Address and length in bytes."""

PAGE_BYTES = 4096


class Memory:
    """/proc/PID/mem: reads and writes whatever is mapped, also what the process itself may not.  A context manager."""

    def __init__(self, pid: int, *, writable: bool = True) -> None:
        """Open the memory of ``pid`` as it is now; after an execve(2) it is no longer that of the process.

        Raises:
            TargetGone: there is no such process.
            MemoryFault: it may not be opened.
        """
        self.pid = pid
        try:
            self.fd = os.open(f"/proc/{pid}/mem", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetGone(f"process {pid} is gone", pid=pid) from error
        except OSError as error:
            raise MemoryFault(f"open the memory of process {pid}: {error.strerror}", operation="open memory",
                              errno=error.errno or 0, tid=pid) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the memory map."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self, address: int, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        buffer = bytearray(length)
        self.read_runs([(address, length)], memoryview(buffer))
        return bytes(buffer)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``; private mappings that are read-only get a copy of their page."""
        self.write_runs([(address, memoryview(data).nbytes)], data)

    def write_parts(self, parts: Sequence[tuple[int, bytes]]) -> None:
        """Write bytes to several addresses, one after the other."""
        self.write_runs([(address, len(data)) for address, data in parts], b"".join(data for _, data in parts))

    def read_runs(self, runs: Sequence[Run], buffer: memoryview | bytearray) -> None:
        """Read all runs, packed one after the other.

        Raises:
            MemoryFault: part of a run is not mapped; ``address`` says where.
            TraceeGone: the process is gone.
        """
        call(lib.crd_memory_read, self.fd, _runs(runs), len(runs), _buffer(buffer, runs, writable=True))

    def write_runs(self, runs: Sequence[Run], buffer: memoryview | bytes | bytearray) -> None:
        """Write all runs from where they lie packed in ``buffer``."""
        call(lib.crd_memory_write, self.fd, _runs(runs), len(runs), _buffer(buffer, runs, writable=False))

    def differing_pages(self, runs: Sequence[Run], buffer: memoryview | bytes | bytearray) -> list[bool]:
        """Say of each page of some runs whether it differs from that in ``buffer``, where they lie packed."""
        found = ffi.new("unsigned char[]", sum(length for _, length in runs) // PAGE_BYTES // 8 + 1)
        call(lib.crd_memory_differing, self.fd, _runs(runs), len(runs), _buffer(buffer, runs, writable=False), found)
        return _bits(found, sum(length for _, length in runs) // PAGE_BYTES)


def process_read_runs(pid: int, runs: Sequence[Run], buffer: memoryview | bytearray) -> None:
    """Read runs by process_vm_readv(2): quickest, but it un-shares copy-on-write pages and respects PROT_NONE."""
    call(lib.crd_process_read, pid, _runs(runs), len(runs), _buffer(buffer, runs, writable=True))


def process_write_runs(pid: int, runs: Sequence[Run], buffer: memoryview | bytes | bytearray) -> None:
    """Write runs by process_vm_writev(2): only into what the process itself may write."""
    call(lib.crd_process_write, pid, _runs(runs), len(runs), _buffer(buffer, runs, writable=False))


def own(runs: memoryview) -> None:
    """Have our own copies of pages that we share copy-on-write with whoever forked us, as far as that can be.

    Args:
        runs: addresses and lengths, u64 each, ascending, up to a length of 0 or the end.
    """
    lib.crd_memory_own(ffi.from_buffer("struct crd_run[]", runs), runs.nbytes // ffi.sizeof("struct crd_run"))


def nonzero_pages(buffer: memoryview | bytes | bytearray) -> list[bool]:
    """Say of each whole page of the buffer whether it holds anything but zeros."""
    n = memoryview(buffer).nbytes // PAGE_BYTES
    found = ffi.new("unsigned char[]", n // 8 + 1)
    lib.crd_nonzero_pages(ffi.from_buffer(buffer), n, found)
    return _bits(found, n)


def _bits(found: Any, n: int) -> list[bool]:
    if not any(ffi.buffer(found)):
        return [False] * n
    return [bool(found[i >> 3] >> (i & 7) & 1) for i in range(n)]


def _runs(runs: Sequence[Run]) -> Any:
    return ffi.new("struct crd_run[]", list(runs))


def _buffer(buffer: memoryview | bytes | bytearray, runs: Sequence[Run], *, writable: bool) -> Any:
    if memoryview(buffer).nbytes < sum(length for _, length in runs):
        raise ValueError("the buffer is smaller than the runs")
    return ffi.from_buffer(buffer, require_writable=writable)
