"""Which images are being read: none of them is removed under its reader."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.ids import Crid


class Readers:
    """Counts readers by image.

    A reader registers, and then asks the catalog for the image.  Who forgets it changes the catalog, and then waits
    until nobody reads: so each reader either has the image to its end or does not find it.
    """

    def __init__(self) -> None:
        self._readers: Counter[Crid] = Counter()
        self._left = asyncio.Event()

    @contextmanager
    def reading(self, crid: Crid) -> Iterator[None]:
        """Read an image."""
        self._readers[crid] += 1
        try:
            yield
        finally:
            self._readers[crid] -= 1
            if not self._readers[crid]:
                del self._readers[crid]
                self._left.set()

    def __contains__(self, crid: Crid) -> bool:
        return crid in self._readers

    async def gone(self, crid: Crid) -> None:
        """Wait until nobody reads an image."""
        while crid in self._readers:
            self._left.clear()
            await self._left.wait()
