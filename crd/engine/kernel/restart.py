"""One restart by the kernel: the image is read and checked whole, then handed to tasks that become its tasks."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from crd.engine.api import Made, Pids, RestartOptions, RestartPlan, RestartResult
from crd.engine.kernel.calls import KernelCalls
from crd.engine.kernel.fit import fit
from crd.engine.kernel.forest import Role
from crd.engine.kernel.pid_array import pid_array
from crd.engine.kernel.proof import RunningKernel, calls_of
from crd.engine.kernel.table import TASK_SELF
from crd.engine.kernel.tasks import Tasks
from crd.errors import ERRORS_BY_CODE, CrdError, ImageCorrupt, RestartUnsupported
from crd.image.generations import Generation
from crd.image.inspect import inspect
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.engine.kernel.pid_array import PidArray
    from crd.image.framing import Source
    from crd.image.inspection import Inspection

_CHUNK_BYTES = 1 << 20
_NEW_PIDS = "the tasks have new pids: Linux-CR kernels give the original ones to no task"


class Restart:
    """An image of a Linux-CR kernel that is to be restarted by this one: nothing is made yet."""

    def __init__(self, source: Source, options: RestartOptions) -> None:
        """Read the image.

        Raises:
            ImageError: it is damaged.
        """
        self._began = time.monotonic()
        self._options = options
        self._file = _spooled(source)
        try:
            self._image = _whole(self._file)
        except BaseException:
            self._file.close()
            raise

    def _prepare(self) -> tuple[KernelCalls, PidArray]:
        """Check all that can be checked: a kernel's answer to a bad image is a dead or half-made task.

        Raises:
            ImageVersionUnsupported: it is of another generation or kernel.
            FeatureMissing: this kernel does not have the calls.
            SettingsError: the calls were named, and wrongly.
            RestartUnsupported: it holds what cannot be made.
        """
        options, image, kernel = self._options, self._image, RunningKernel()
        numbers = calls_of(kernel, options.linux_cr)
        fit(image, self._file, kernel, numbers, force_version=options.force_version)
        if options.pids == Pids.NAMESPACE:
            raise RestartUnsupported("a Linux-CR kernel restarts no image in a pid namespace of its own",
                                     hint="Start crd in one.")
        if image.generation == Generation.D and not numbers.generation:  # given by hand
            numbers = replace(numbers, restart_flags=TASK_SELF, coordinated=True)
        return KernelCalls(numbers), pid_array(image)

    def plan(self) -> RestartPlan:
        """Tell what is to be made, and what stands in its way."""
        makes = tuple(Made("task", f"{task.pid} ({task.comm})", "with a new pid") for task in self._image.tasks)
        with self._file:
            try:
                self._prepare()
            except CrdError as error:
                return RestartPlan(makes=makes, clashes=(error.to_json(),))
        return RestartPlan(makes=makes, notes=(_NEW_PIDS,))

    def run(self, confirm: Callable[[RestartResult], None] | None) -> RestartResult:
        """Make the tasks and have the kernel restore them.

        Args:
            confirm: called when all are made and nothing of the image runs yet; if it raises, nothing is left.

        Raises:
            CrdError: what ``_prepare`` raises, or a RestartError or ImageError: the kernel refuses; nothing is left.
        """
        with ExitStack() as stack:
            file = stack.enter_context(self._file)
            calls, array = self._prepare()
            tasks = stack.enter_context(Tasks(array.root, file.fileno(), calls, reap=self._options.reap,
                                              coordinated=calls.numbers.coordinated))
            _renumber(file, array, tasks.all_numbers)
            result = RestartResult(
                root_pid=tasks.root_pid, start_time=procfs.stat(tasks.root_pid).start_time, pids=tasks.numbers,
                tasks=sum(node.role is Role.TASK for node in array.root.family()), threads=len(tasks.numbers),
                duration_seconds=time.monotonic() - self._began, reaper_pid=tasks.stand_in_pid, notes=(_NEW_PIDS,))
            if confirm:
                confirm(result)
            tasks.go(self._image.image_bytes)
        return result


def _renumber(file: IO[bytes], array: PidArray, numbers: dict[int, int]) -> None:
    """Put the new pids into the image, and stand at its beginning."""
    if array.offset is not None:
        old = os.pread(file.fileno(), array.n_bytes, array.offset)
        os.pwrite(file.fileno(), array.renumbered(old, numbers), array.offset)
    os.lseek(file.fileno(), 0, os.SEEK_SET)


def _whole(file: IO[bytes]) -> Inspection:
    """Return what the image holds; ImageError if it is damaged."""
    image = inspect(file)  # type: ignore[arg-type]  # a file has readinto
    if image.broken:
        kind = ERRORS_BY_CODE.get(image.broken.error, ImageCorrupt)
        raise kind(image.broken.message, offset=image.broken.offset, record=image.broken.record)
    return image


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
