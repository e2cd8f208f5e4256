"""Answers the methods about images that are there: which, to whom, and keeping them well."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from crd.api.channel import PeerLost
from crd.daemon.adoption import Adoption, adopt_all
from crd.daemon.comparison import compare, difference_json
from crd.daemon.rendering import image_json, verdict_json
from crd.daemon.retention import Verdict
from crd.errors import (
    AccessDenied,
    BadRequest,
    Busy,
    CatalogTargetNotFound,
    CrdError,
    ImageElsewhere,
    ImageInUse,
    ImageNotFound,
)
from crd.ids import parse_image_ref, parse_note, parse_tag, parse_target_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from crd.api.access import Peer
    from crd.api.channel import Channel
    from crd.catalog.rows import Image
    from crd.daemon.app import App
    from crd.daemon.retention import Swept
    from crd.daemon.scheduler import ScheduledTarget
    from crd.daemon.scrub import Scrubbed
    from crd.engine.rehearsal import Rehearsal

    More = Callable[[dict[str, Any]], Awaitable[None]]

logger = logging.getLogger(__name__)

_VERIFIED_AT_ONCE = 2
"""Images verified or compared at once because somebody, maybe no administrator, asked for it: that costs more."""
_CHECKED_AT_ONCE = 4
"""Processes checked at once: each takes a worker."""
_NAMED = "named to be forgotten"


class UpkeepHandlers:
    """One method for each of the interface, named as there."""

    def __init__(self, app: App) -> None:
        """Answer for a daemon."""
        self._app = app
        self._verifying = asyncio.Semaphore(_VERIFIED_AT_ONCE)
        self._checking = asyncio.Semaphore(_CHECKED_AT_ONCE)
        self._verifying_for: set[int] = set()

    async def _on_GetImage(self, *, peer: Peer, more: More | None, reference: str) -> dict[str, Any]:  # noqa: ARG002, N802
        image = await self._find(peer, reference)
        here = image.host == self._app.host
        verdict = (await self._app.retention.verdict(image.target, image.crid)
                   if here and image.target in self._app.scheduler.targets else None)
        return {"image": image_json(image), "retention": verdict_json(verdict) if verdict else None,
                "sharing": asdict(await self._app.archive.sharing(image.crid)) if here else None}

    async def _on_Pin(self, *, peer: Peer, more: More | None, reference: str, pinned: bool) -> dict[str, Any]:  # noqa: ARG002, N802
        image = await self._here(peer, reference)
        return {"image": image_json(await self._app.catalog.images.pin(image.crid, pinned=pinned))}

    async def _on_Tag(self, *, peer: Peer, more: More | None, reference: str, add: list[str] | None,  # noqa: ARG002, N802
                      remove: list[str] | None) -> dict[str, Any]:
        added = [parse_tag(tag) for tag in add or ()]
        image = await self._here(peer, reference)
        return {"image": image_json(await self._app.catalog.images.tag(image.crid, added, remove or ()))}

    async def _on_Note(self, *, peer: Peer, more: More | None, reference: str, text: str | None) -> dict[str, Any]:  # noqa: ARG002, N802
        note = None if text is None else parse_note(text)
        image = await self._here(peer, reference)
        return {"image": image_json(await self._app.catalog.images.note(image.crid, note))}

    async def _on_Diff(self, *, peer: Peer, more: More | None, references: list[str],  # noqa: ARG002, N802
                       limit: int | None) -> dict[str, Any]:
        if len(references) != 2:
            raise BadRequest("name two images")
        one, other = [(await self._here(peer, reference)).crid for reference in references]
        async with self._one_of_each_user(peer), self._verifying:
            with self._app.readers.reading(one), self._app.readers.reading(other):
                before, after = [await self._app.catalog.images.get(crid) for crid in (one, other)]
                found = await compare(self._app.archive, before, after)
        return {"before": image_json(before), "after": image_json(after), **difference_json(found, limit)}

    async def _on_Forget(self, *, peer: Peer, more: More | None, references: list[str] | None,  # noqa: ARG002, N802
                         target: str | None, dry_run: bool | None) -> dict[str, Any]:
        if references and target is not None:
            raise BadRequest("name either images or a target")
        if references:
            images = {image.crid: image for image in [await self._here(peer, reference) for reference in references]}
            work = self._forget_named(list(images.values()), dry_run=bool(dry_run))
        else:
            need_admin(peer)
            names = [self._known(target).name] if target is not None else sorted(self._app.scheduler.targets)
            work = self._forget_unwanted(names, dry_run=bool(dry_run))
        return {"verdicts": [verdict_json(verdict) for verdict in await asyncio.shield(self._app.start(work))]}

    async def _forget_named(self, images: list[Image], *, dry_run: bool) -> list[Verdict]:
        """Forget all that were named, or none if one of them is pinned."""
        if pinned := [image.crid for image in images if image.pinned]:
            raise ImageInUse(f"image {pinned[0]} is pinned", crid=pinned[0], hint="crctl pin --remove lets go of it.")
        verdicts = [Verdict(crid=image.crid, target=image.target, taken_at=image.taken_at, keep=False,
                            stored_bytes=image.stored_bytes, reasons=(_NAMED,)) for image in images]
        return verdicts if dry_run else [await self._app.retention.carry_out(verdict) for verdict in verdicts]

    async def _forget_unwanted(self, targets: list[str], *, dry_run: bool) -> list[Verdict]:
        retention = self._app.retention
        act = retention.verdicts if dry_run else retention.apply
        return [verdict for target in targets for verdict in await act(target)]

    async def _on_Sweep(self, *, peer: Peer, more: More | None) -> dict[str, Any]:  # noqa: ARG002, N802
        need_admin(peer)
        swept: Swept = await asyncio.shield(self._app.start(self._app.retention.sweep()))
        return swept._asdict() | {"hindrance": swept.hindrance or None}

    async def _on_Verify(self, *, peer: Peer, more: More | None, reference: str,  # noqa: ARG002, N802
                         restart: bool | None) -> dict[str, Any]:
        crid = (await self._here(peer, reference)).crid
        async with self._one_of_each_user(peer), self._verifying:
            image = await self._app.scrub.check(crid)
            rehearsed = await self._rehearse(image) if restart else None
        return {"image": image_json(image), "rehearsal": rehearsed and {
            "tasks": rehearsed.tasks, "threads": rehearsed.threads, "seconds": rehearsed.duration_seconds,
            "notes": list(rehearsed.notes), "ran": not rehearsed.hindrance, "hindrance": rehearsed.hindrance,
            "seen": [{"pid": one.pid, "comm": one.comm, "what": one.what} for one in rehearsed.seen]}}

    @asynccontextmanager
    async def _one_of_each_user(self, peer: Peer) -> AsyncIterator[None]:
        """Keep a user who is no administrator from having many images read at once.

        Raises:
            Busy: one is.
        """
        if peer.is_admin:
            yield
            return
        if peer.uid in self._verifying_for:
            raise Busy("another image of yours is being read", hint="Wait for it, then try again.")
        self._verifying_for.add(peer.uid)
        try:
            yield
        finally:
            self._verifying_for.discard(peer.uid)

    async def _rehearse(self, image: Image) -> Rehearsal:
        with self._app.readers.reading(image.crid):
            return await self._app.pipeline.rehearse(image.crid)

    async def _on_Scrub(self, *, peer: Peer, more: More | None) -> dict[str, Any]:  # noqa: N802
        need_admin(peer)

        async def tell(so_far: Scrubbed) -> None:
            if more:
                await more(asdict(so_far))

        return asdict(await self._app.scrub.all(tell))

    async def _on_Export(self, *, peer: Peer, more: Channel, reference: str) -> dict[str, Any]:  # noqa: N802
        need_admin(peer)  # the catalog knows a task's real uid only: what it knew may not have been for its user
        from crd.daemon.transfer import export_image

        crid = (await self._here(peer, reference)).crid
        begun = False

        async def begin(image: Image) -> None:
            nonlocal begun
            begun = True
            await more.begin({"image": image_json(image)})

        try:
            with self._app.readers.reading(crid):
                return {"image": image_json(await export_image(self._app.pipeline, crid, begin, more.write))}
        except CrdError as error:
            if not begun:
                raise
            logger.error("export of image %d: %s", crid, error.message,  # noqa: TRY400  not a fault of ours
                         extra={"event": "export.failed", "crid": crid, "error": error.code})
            raise PeerLost(error.message) from error

    async def _on_Import(self, *, peer: Peer, more: Channel) -> dict[str, Any]:  # noqa: N802
        need_admin(peer)  # restarting an image gives it whatever it says it had
        from crd.daemon.transfer import import_image

        await more.begin({"image": None})
        try:
            image = await import_image(self._app.pipeline, more.read)
        except CrdError:
            while await more.read():  # who still writes could not hear why
                pass
            raise
        logger.info("image imported", extra={"event": "image.imported", "crid": image.crid})
        return {"image": image_json(image)}

    async def _on_Adopt(self, *, peer: Peer, more: More | None, target: str | None) -> dict[str, Any]:  # noqa: N802
        need_admin(peer)  # restarting an image gives it whatever it says it had

        async def tell(so_far: Adoption) -> None:
            if more:
                await more(asdict(so_far))

        done = await adopt_all(self._app.pipeline, None if target is None else parse_target_name(target), tell)
        if not done.failed:
            self._app.without_row = ()
        return asdict(done)

    def _known(self, name: str) -> ScheduledTarget:
        if name not in self._app.scheduler.targets:
            raise CatalogTargetNotFound(f"there is no target {name}", hint="crctl targets lists them.")
        return self._app.scheduler.targets[name]

    async def _here(self, peer: Peer, reference: str) -> Image:
        """Find an image in our own archive."""
        image = await self._find(peer, reference)
        if image.host != self._app.host:
            raise ImageElsewhere(f"image {image.crid} of {image.host} is in the archive of that host",
                                 hint=f"Ask the daemon of {image.host}.")
        return image

    async def _find(self, peer: Peer, reference: str) -> Image:
        image = await self._app.catalog.images.find(parse_image_ref(reference, now=self._app.clock.now()))
        if not peer.is_admin and image.uid != peer.uid:
            raise ImageNotFound(f"there is no image {reference} of yours")
        return image


def need_admin(peer: Peer) -> None:
    """Let only administrators pass.

    Raises:
        AccessDenied: it is another.
    """
    if not peer.is_admin:
        raise AccessDenied("only root and members of the group crd may do this",
                           hint="Ask an administrator to add you to the group.")
