"""One restart by the kernel: the image is read and checked whole, then handed to tasks that become its tasks."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from crd.engine.api import Pids, RestartOptions, RestartResult
from crd.engine.kernel.calls import KernelCalls
from crd.engine.kernel.forest import Role
from crd.engine.kernel.pid_array import pid_array
from crd.engine.kernel.proof import RunningKernel, calls_of
from crd.engine.kernel.table import TASK_SELF
from crd.engine.kernel.tasks import Tasks
from crd.errors import ERRORS_BY_CODE, ImageCorrupt, ImageVersionUnsupported, RestartUnsupported
from crd.image.generations import Generation
from crd.image.inspect import inspect
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.engine.kernel.table import CallNumbers
    from crd.image.framing import Source
    from crd.image.inspection import Inspection

_CHUNK_BYTES = 1 << 20
_NEW_PIDS = "the tasks have new pids: Linux-CR kernels give the original ones to no task"


class Restart:
    """An image of a Linux-CR kernel that is to be restarted by this one: nothing is made yet."""

    def __init__(self, source: Source, options: RestartOptions) -> None:
        """Read and check the image: a kernel's answer to a bad one is a dead or half-made task.

        Raises:
            ImageError: it is damaged, or of another generation or kernel.
            FeatureMissing: this kernel does not have the calls.
            RestartUnsupported: it holds what cannot be made.
        """
        self._began = time.monotonic()
        self._file = _spooled(source)
        try:
            self._check(options)
        except BaseException:
            self._file.close()
            raise

    def _check(self, options: RestartOptions) -> None:
        image = inspect(self._file)  # type: ignore[arg-type]  # a file has readinto
        if image.broken:
            kind = ERRORS_BY_CODE.get(image.broken.error, ImageCorrupt)
            raise kind(image.broken.message, offset=image.broken.offset, record=image.broken.record)
        kernel = RunningKernel()
        numbers = calls_of(kernel, options.linux_cr)
        _check_version(image, kernel, numbers)
        if options.pids == Pids.NAMESPACE:
            raise RestartUnsupported("a Linux-CR kernel restarts no image in a pid namespace of its own",
                                     hint="Start crd in one.")
        if image.generation == Generation.D and not numbers.generation:  # given by hand
            numbers = replace(numbers, restart_flags=TASK_SELF, coordinated=True)
        self._calls = KernelCalls(numbers)
        self._array = pid_array(image)
        self._image_bytes = image.image_bytes
        self._reap = options.reap

    def run(self, confirm: Callable[[RestartResult], None] | None) -> RestartResult:
        """Make the tasks and have the kernel restore them.

        Args:
            confirm: called when all are made and nothing of the image runs yet; if it raises, nothing is left.

        Raises:
            RestartError, ImageError: the kernel refuses; nothing is left.
        """
        with ExitStack() as stack:
            file = stack.enter_context(self._file)
            tasks = stack.enter_context(Tasks(self._array.root, file.fileno(), self._calls, reap=self._reap,
                                              coordinated=self._calls.numbers.coordinated))
            self._renumber(file, tasks.all_numbers)
            result = RestartResult(
                root_pid=tasks.root_pid, start_time=procfs.stat(tasks.root_pid).start_time, pids=tasks.numbers,
                tasks=sum(node.role is Role.TASK for node in self._array.root.family()), threads=len(tasks.numbers),
                duration_seconds=time.monotonic() - self._began, reaper_pid=tasks.stand_in_pid, notes=(_NEW_PIDS,))
            if confirm:
                confirm(result)
            tasks.go(self._image_bytes)
        return result

    def _renumber(self, file: IO[bytes], numbers: dict[int, int]) -> None:
        """Put the new pids into the image, and stand at its beginning."""
        array = self._array
        if array.offset is not None:
            old = os.pread(file.fileno(), array.n_bytes, array.offset)
            os.pwrite(file.fileno(), array.renumbered(old, numbers), array.offset)
        os.lseek(file.fileno(), 0, os.SEEK_SET)


def _spooled(source: Source) -> IO[bytes]:
    """Return the image in a file without a name: it must be whole before a task is made, and its pids change."""
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # ``run`` closes it
    try:
        chunk = memoryview(bytearray(_CHUNK_BYTES))
        while n_read := source.readinto(chunk):
            file.write(chunk[:n_read])
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _check_version(image: Inspection, kernel: RunningKernel, numbers: CallNumbers) -> None:
    """Refuse what the kernel refuses with EINVAL (spec section 5.3), but say why."""
    header = image.header
    assert header is not None  # noqa: S101  # it is whole
    if numbers.generation not in {"", image.generation}:
        raise ImageVersionUnsupported(f"the image is of {image.generation} ({image.versions}), and the kernel's calls "
                                      f"are of {numbers.release}, which is {numbers.generation}")
    if header.kernel != kernel.numbers:
        raise ImageVersionUnsupported(f"the image was written by kernel {header.kernel}: this one is {kernel.numbers}, "
                                      "and a Linux-CR kernel restarts its own images only")
