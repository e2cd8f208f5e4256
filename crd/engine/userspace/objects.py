"""Numbers of shared objects: counted from 1 through an image."""

from __future__ import annotations


class ObjectNumbers:
    """Gives out objrefs."""

    def __init__(self) -> None:
        """Begin with 1."""
        self._last = 0

    def new(self) -> int:
        """Return the next number."""
        self._last += 1
        return self._last
