"""Threads that do something again and again, whatever becomes of the daemon."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self


class Restless:
    """Threads that run as long as the context does, and look at ``over``."""

    def __init__(self, works: Iterable[Callable[[], object]]) -> None:
        """Have one for each."""
        self.over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in works]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()
