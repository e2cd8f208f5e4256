"""The right to write into one part of a shared store: one daemon has it at a time.

It is an object, ``lease``, that its holder replaces again and again, each time only if it is still what it put there (a
conditional put by ETag).  Nobody's clock is compared with another's: a lease has run out when it did not change for as
long as it says, by the clock of who watches it.  Its holder stops to write when it could not renew it for two thirds of
that: the rest is for requests that are under way.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from obstore.exceptions import AlreadyExistsError, PreconditionError

from crd.archive.stores.s3_client import Client
from crd.errors import ArchiveError, ArchiveFull, ArchiveInUse, ArchiveUnavailable, BlobMissing

if TYPE_CHECKING:
    from crd.archive.stores.s3_client import Location

logger = logging.getLogger(__name__)

LEASE_SECONDS = 45.0
_NAME = "lease"
_RENEWALS = 3
_USABLE = 2 / 3
_WATCH_SECONDS = 1.0


def holder_of(state_dir: Path) -> str:
    """Return who works on a state directory, which is one daemon at a time: another boot is somebody else."""
    found = state_dir.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return blake3(f"{boot} {found.st_dev} {found.st_ino}".encode()).hexdigest(length=16)


@dataclass(frozen=True, slots=True)
class _Found:
    """A lease as it is in the store; ``beat`` is another after each renewal."""

    e_tag: str | None
    holder: str
    beat: str
    seconds: float
    who: str


class Lease:
    """A lease on a part of a store: ``acquire`` it, ``run`` beside everything else, ``release`` it."""

    def __init__(self, location: Location, prefix: str, holder: str, *, seconds: float = LEASE_SECONDS) -> None:
        """Want a lease on a prefix below that of a location.

        Args:
            location: of the archive.
            prefix: whose lease is wanted.
            holder: see ``holder_of``: what the same one held is ours at once.
            seconds: after which it may be taken from us if it was not renewed.
        """
        self._client = Client(location, prefix, retry_seconds=seconds / _RENEWALS, request_seconds=seconds / _RENEWALS)
        self._where = self._client.where
        self._prefix = prefix
        self._holder = holder
        self._seconds = seconds
        self._id = f"{secrets.token_hex(8)}-"
        self._beats = 0
        self._e_tag: str | None = None
        self._renewed_at = -seconds
        self._lost = False

    def check(self) -> None:
        """Make sure that it is held.

        Raises:
            ArchiveInUse: another has it.
            ArchiveUnavailable: it could not be renewed for so long that another may have it soon.
        """
        if self._lost:
            raise ArchiveInUse(f"another daemon took over {self._where}", hint=self._hint)
        if _now() - self._renewed_at >= _USABLE * self._seconds:
            raise ArchiveUnavailable(f"{self._where}: our lease could not be renewed for {_USABLE * self._seconds:g} s")

    @property
    def _hint(self) -> str:
        return (f"Two daemons may not write as {self._prefix!r}: stop one, or give it another name by s3.writer. A "
                "name that was used before brings its images with it.")

    async def acquire(self) -> None:
        """Take it; where another seems to hold it, see first for how long it does not renew it.

        Raises:
            ArchiveInUse: another holds it.
            ArchiveFull, ArchiveUnavailable: the store cannot be written to, or not be reached.
        """
        found = await self._read()
        if found and found.holder not in {"", self._holder}:
            logger.warning("%s is in use by %s, or was: it is taken over if nothing is heard of that one for %g s",
                           self._where, found.who, found.seconds, extra={"event": "archive.lease-watched"})
            found = await self._watch(found)
        if not await self._put(found.e_tag if found else None):
            raise ArchiveInUse(f"another daemon took {self._where} just now", hint=self._hint)

    async def _watch(self, first: _Found) -> _Found | None:
        """Return the lease as soon as it is free."""
        since = _now()
        while _now() - since < first.seconds:
            await asyncio.sleep(min(_WATCH_SECONDS, first.seconds / 4))
            found = await self._read()
            if not found or not found.holder:
                return found
            if found.beat != first.beat:
                raise ArchiveInUse(f"{self._where} is in use by {found.who}", hint=self._hint)
        return first

    async def run(self) -> None:
        """Renew it in time, until it is lost; a store that is away, or full, is asked again.

        Raises:
            ArchiveInUse: another took it.
        """
        pause = self._seconds / _RENEWALS
        while True:
            await asyncio.sleep(pause)
            try:
                if not await self._put(self._e_tag):
                    self._lost = True
                    self.check()
                pause = self._seconds / _RENEWALS
            except (ArchiveUnavailable, ArchiveFull) as error:
                logger.debug("lease: %s", error.message, extra={"event": "archive.lease-late"})
                pause = min(_WATCH_SECONDS, pause)

    async def release(self) -> None:
        """Let others have it at once; if the store cannot be reached, they wait for it to run out."""
        held, self._lost = not self._lost, True
        if held:
            with suppress(ArchiveError):
                await self._put(self._e_tag, holder="")

    async def _put(self, e_tag: str | None, holder: str | None = None) -> bool:
        """Replace the lease if it still is what it was, or what we put there; return whether that was so."""
        while True:
            began, self._beats = _now(), self._beats + 1
            beat = f"{self._id}{self._beats}"
            content = json.dumps({"holder": self._holder if holder is None else holder, "beat": beat,
                                  "seconds": self._seconds, "host": socket.gethostname(), "pid": os.getpid()}).encode()
            try:
                self._e_tag = await self._client.put(_NAME, [content], e_tag=e_tag)
            except (AlreadyExistsError, PreconditionError, BlobMissing):
                found = await self._read()
                if not found or not found.beat.startswith(self._id):
                    return False
                self._e_tag = e_tag = found.e_tag  # an answer was lost: to this put, or to one before
                if found.beat != beat:
                    continue
            self._renewed_at = began
            return True

    async def _read(self) -> _Found | None:
        try:
            e_tag, content = await self._client.get_version(_NAME)
        except BlobMissing:
            return None
        try:
            said: dict[str, Any] = json.loads(content)
            return _Found(e_tag, str(said["holder"]), str(said["beat"]),
                          min(float(said["seconds"]), 10 * LEASE_SECONDS), f"{said['host']}, pid {said['pid']}")
        except (ValueError, TypeError, KeyError) as error:
            raise ArchiveError(f"{self._where}/{_NAME} is no lease", hint="If no daemon writes as "
                               f"{self._prefix!r}, remove that object.") from error


def _now() -> float:
    """Return seconds, of which none is left out while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
