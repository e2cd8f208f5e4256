"""One image, written by the kernel itself."""

from __future__ import annotations

import os
import signal
import stat
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from crd.engine.api import KERNEL, After, CheckpointOptions, CheckpointResult
from crd.engine.kernel import freezer
from crd.errors import AccessDenied, EngineError, ImageError
from crd.image.front import header_of
from crd.image.generations import PREFIX_BYTES
from crd.native.stream import widen_pipe
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crd.engine.crid import CridCounter
    from crd.engine.kernel.calls import KernelCalls
    from crd.target.model import Status


def checkpoint(pid: int, fd: int, calls: KernelCalls, options: CheckpointOptions, *, crids: CridCounter,
               commit: Callable[[CheckpointResult], None] | None = None) -> CheckpointResult:
    """Have the kernel write the image of a process straight to a descriptor; see ``crd.engine.api.checkpoint``.

    Nobody but the kernel looks at the image on its way: of one in a pipe neither size nor header are told.

    Raises:
        CrdError: there is no image, and the target runs on.
    """
    began = time.monotonic()
    root = freezer.mounted()
    crids.check()
    widen_pipe(fd)
    start = _position(fd)
    with ExitStack() as stack:
        family = stack.enter_context(freezer.frozen(pid, root, tree=options.tree, seconds=options.freeze_seconds))
        frozen_at, taken_at = time.monotonic(), time.time()
        tasks = {member: [procfs.status(f"{member}/task/{tid}") for tid in procfs.threads(member)] for member in family}
        comm, uid = tasks[pid][0].comm, _uid(tasks.values(), options.only_uid)
        number = calls.checkpoint(pid, fd)
        if number <= 0:
            raise EngineError(f"the kernel says {number} where the number of an image was due")
        if options.after == After.RUN:
            stack.close()
        result = CheckpointResult(
            crid=crids.next(), pid=pid, uid=uid, comm=comm, taken_at=taken_at, engine=KERNEL, method=KERNEL,
            method_reason=f"image {number} since this kernel runs", tasks=len(family),
            threads=sum(map(len, tasks.values())), memory_bytes=0, stop_seconds=time.monotonic() - frozen_at,
            duration_seconds=time.monotonic() - began, **_written(fd, start))
        if commit:
            commit(result)
        for member in family if options.after != After.RUN else ():
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL if options.after == After.KILL else signal.SIGSTOP)
    return result


def _uid(processes: Iterable[list[Status]], only: int | None) -> int:
    """Return the one user as which all threads run, 0 if there are several.

    Raises:
        AccessDenied: it is not the only one allowed.
    """
    uids = {uid for threads in processes for status in threads for uid in status.uids}
    if only is not None and uids != {only}:
        raise AccessDenied(f"the target does not run as uid {only} alone")
    return uids.pop() if len(uids) == 1 else 0


def _position(fd: int) -> int | None:
    return os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(os.fstat(fd).st_mode) else None


def _written(fd: int, start: int | None) -> dict[str, Any]:
    """Return size and header of the image, if it lies in a file that can be read."""
    end = _position(fd)
    if start is None or end is None:
        return {"image_bytes": None, "header": {}}
    try:
        with open(f"/proc/self/fd/{fd}", "rb") as image:
            header = header_of(os.pread(image.fileno(), PREFIX_BYTES, start)).to_json()
    except (OSError, ImageError):
        header = {}
    return {"image_bytes": end - start, "header": header}
