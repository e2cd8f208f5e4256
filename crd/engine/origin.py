"""Who wrote an image, and so can restart it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.engine.stream import DescriptorSource
from crd.image.cursor import Cursor
from crd.image.generations import PREFIX_BYTES, is_of_a_kernel

if TYPE_CHECKING:
    from crd.engine.api import RestartOptions
    from crd.engine.kernel.restart import Restart


def opened(fd: int, options: RestartOptions) -> tuple[Cursor, Restart | None]:
    """Return the image behind a descriptor, and its restart if a Linux-CR kernel wrote it: only such a one takes it.

    Raises:
        ImageError: a kernel wrote it, and it is damaged.
    """
    source = Cursor(DescriptorSource(fd))
    if not is_of_a_kernel(source.peek(PREFIX_BYTES)):
        return source, None
    from crd.engine.kernel.restart import Restart  # not needed by most

    return source, Restart(source, options)
