"""One line on the terminal that says how far something is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from crd.text import printable

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_ERASE_LINE = "\r\033[K"


class Progress:
    """Overwrites itself on standard error, and is gone in the end; silent where that is no terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Say how far it is."""
        if self._shown:
            sys.stderr.write(_ERASE_LINE + printable(text))
            sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._shown:
            sys.stderr.write(_ERASE_LINE)
            sys.stderr.flush()
