"""A process that undoes what must not outlive the worker, however the worker ends."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    Undo = Callable[[list[str]], None]

_LINE_BYTES_MAX = 4096  # PIPE_BUF: lines are written whole


class Guardian:
    """Runs ``undo`` with all that it was told once its maker is done or dead.  A context manager.

    Nothing but the guardian undoes, so there is one way out.  If it is killed as well, who comes next sweeps up.
    """

    def __init__(self, undo: Undo) -> None:
        """Fork it."""
        read_end, self._tell = os.pipe2(os.O_CLOEXEC)
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _guard(read_end, undo)
        os.close(read_end)

    def tell(self, line: str) -> None:
        """Tell it something, before that is done which it will have to undo."""
        data = os.fsencode(line) + b"\n"
        if len(data) > _LINE_BYTES_MAX or b"\n" in data[:-1]:
            raise EngineError(f"{line!r} cannot be told to the guardian")
        os.write(self._tell, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Have everything undone, and wait for it; EngineError if that failed."""
        os.close(self._tell)
        _, status = os.waitpid(self.pid, 0)
        if status and error is None:
            raise EngineError("what was done for the checkpoint or restart could not all be undone",
                              hint="The daemon's log says what; a frozen target is in the freezer cgroup crd-*.")


def close_all_but(*kept: int) -> None:
    """Close every descriptor but these and the standard ones."""
    start = 3
    for fd in sorted(kept):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _guard(read_end: int, undo: Undo) -> None:
    """Be the guardian; this does not return."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        close_all_but(read_end)
        with open(read_end, "rb") as told:
            undo([os.fsdecode(line).rstrip("\n") for line in told])
        status = 0
    except BaseException:  # noqa: BLE001  nobody else can say it
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)
