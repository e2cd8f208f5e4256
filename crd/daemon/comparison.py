"""Compares two images of the archive."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from crd.archive.comparison import differing, memory_of
from crd.archive.threads import in_thread
from crd.daemon.pages import page_rows
from crd.daemon.pipeline import feed_in_part, usable
from crd.daemon.streams import Pipe, both
from crd.image.difference import Side, difference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.archive.archive import Archive
    from crd.archive.source import ImageSource
    from crd.catalog.rows import Image
    from crd.image.difference import Difference
    from crd.image.inspection import Inspection

_CHANGES = 100


async def compare(archive: Archive, before: Image, after: Image) -> Difference:
    """Return what differs between two images.

    Their pages are compared by their hashes; only those of images that were not taken one after the other are opened.

    Raises:
        ImageDamaged: one is known to be damaged.
        BlobCorrupt, BlobMissing: one is damaged.
        ArchiveUnavailable: one cannot be read just now.
        ImageError, ArchiveError: one is not of crd's own engine.
    """
    one, other = [await archive.source(usable(image).crid) for image in (before, after)]
    sides = await _side(one, before), await _side(other, after)
    ours = await one.page_hashes(before.digest)
    theirs = await other.page_hashes(after.digest, ours.key)
    return await in_thread(difference, *sides, partial(differing, ours, theirs))


async def _side(source: ImageSource, image: Image) -> Side:
    with Pipe() as pipe:

        async def read() -> Inspection:
            try:
                return await in_thread(_front, pipe.read_end)
            finally:
                pipe.close_read_end()

        front = await both(read(), feed_in_part(source, pipe))
    return Side(front, image.pid, await in_thread(memory_of, source.manifest.literals))


def _front(fd: int) -> Inspection:
    from crd.image.inspect import inspect_front  # not needed by most

    with open(fd, "rb", closefd=False) as stream:
        return inspect_front(stream)


def difference_json(found: Difference, limit: int | None) -> dict[str, Any]:
    """Return what the reply of Diff says beside the images; of each list only the first changes.

    Raises:
        BadRequest: as ``page_rows``.
    """
    n = page_rows(_CHANGES if limit is None else limit)
    total = {"tasks": len(found.tasks), "mappings": len(found.memory), "files": len(found.files),
             "equal_pages": found.equal_pages}
    for name in ("changed_pages", "added_pages", "removed_pages"):
        total[name] = sum(getattr(change, name) for change in found.memory)
    return {"total": total, "tasks": _rows(found.tasks[:n]), "files": _rows(found.files[:n]),
            "memory": [{"pid": change.pid, **_both(change), "changed_pages": change.changed_pages,
                        "added_pages": change.added_pages, "removed_pages": change.removed_pages}
                       for change in found.memory[:n]]}


def _rows(changes: Sequence[Any]) -> list[dict[str, Any]]:
    return [change._asdict() | _both(change) for change in changes]


def _both(change: Any) -> dict[str, Any]:
    return {name: value and value._asdict() for name in ("before", "after") for value in [getattr(change, name)]}
