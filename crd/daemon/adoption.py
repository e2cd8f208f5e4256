"""Images of the archive that the catalog has lost, taken into it again from what their records say."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from crd.daemon.pipeline import feed
from crd.daemon.streams import Pipe, both
from crd.errors import CrdError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crd.catalog.rows import Image
    from crd.daemon.pipeline import Pipeline
    from crd.daemon.transfer import Summary
    from crd.ids import Crid, TargetName

logger = logging.getLogger(__name__)

ADOPTED = "adopted"


@dataclass(slots=True)
class Adoption:
    """How far it is; field names are those of ``io.crd.varlink``.

    Attributes:
        images: to be looked at.
        adopted: how many were taken in.
        failed: how many were not.
        crid: the one looked at last.
        message: what is wrong with that.
    """

    images: int
    adopted: int = 0
    failed: int = 0
    crid: Crid | None = None
    message: str | None = None


async def adopt_all(pipeline: Pipeline, target: TargetName | None,
                    tell: Callable[[Adoption], Awaitable[None]]) -> Adoption:
    """Take in every image that has no row.

    Args:
        pipeline: with the archive and the catalog.
        target: that they are to belong to, since their records do not say; None: none, so that no rule forgets them.
        tell: told after each of them.

    Raises:
        ArchiveUnavailable, CatalogError: nothing can be read or entered just now.
    """
    lost = await pipeline.catalog.images.without_row(await pipeline.archive.crids())
    so_far = Adoption(len(lost))
    for crid in lost:
        so_far.crid, so_far.message = crid, None
        try:
            await adopt(pipeline, crid, target)
        except CrdError as error:
            logger.warning("image %d is not taken in: %s", crid, error.message,
                           extra={"event": "image.not-adopted", "crid": crid, "error": error.code})
            so_far.failed, so_far.message = so_far.failed + 1, error.message
        else:
            logger.info("image taken in", extra={"event": "image.adopted", "crid": crid})
            so_far.adopted += 1
        await tell(so_far)
    return replace(so_far, crid=None, message=None)


async def adopt(pipeline: Pipeline, crid: Crid, target: TargetName | None) -> Image:
    """Check all that is stored of an image, read its records, and enter it.

    Raises:
        CrdError: it is damaged, or was not written by the userspace engine.
    """
    from crd.daemon.transfer import summarised

    source = await pipeline.archive.source(crid)
    stored = await pipeline.archive.stored(crid)
    await source.verify(stored.digest)
    with Pipe() as pipe:

        async def read() -> Summary:
            try:
                return await asyncio.to_thread(summarised, pipe.read_end)
            finally:
                pipe.close_read_end()

        summary = await both(read(), feed(source, pipe))
    row = summary.row(crid, pipeline.host, image_bytes=stored.image_bytes, digest=stored.digest, origin=ADOPTED)
    await pipeline.catalog.images.begin(replace(row, target=target))
    return await pipeline.catalog.images.finish(crid, stored.stored_bytes)
