"""A process that restarts an image, to be killed while it does."""

from __future__ import annotations

import os
import signal
import traceback
from typing import TYPE_CHECKING, Any

from crd.engine.api import Pids, RestartOptions, restart
from crd.engine.userspace import restart as _loaded  # noqa: F401  so that each restorer begins at once

if TYPE_CHECKING:
    from pathlib import Path


class Restorer:
    """Forked from us; works from the beginning, and never lets its tasks go."""

    def __init__(self, image: Path, pids: str) -> None:
        self._told, tell = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                _restart(image, pids, tell)
            except BaseException:  # noqa: BLE001  (a fork of the tests must not return into them)
                traceback.print_exc()
                os._exit(1)
        os.close(tell)

    def wait_ready(self) -> None:
        """Wait until all is made."""
        assert os.read(self._told, 1) == b"?"

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        os.kill(self._pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(self._pid, 0)[1]), "a restart failed by itself"
        os.close(self._told)


def _restart(image: Path, pids: str, tell: int) -> None:
    def confirm(_: Any) -> None:
        os.write(tell, b"?")
        while True:
            signal.pause()

    with image.open("rb") as file:
        restart(file.fileno(), options=RestartOptions(pids=Pids(pids)), confirm=confirm)
