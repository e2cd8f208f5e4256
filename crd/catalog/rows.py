"""The rows as the rest of crd sees them; field names are those of ``io.crd.varlink``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from crd.ids import Crid


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image in the archive.

    Attributes:
        state: ok, damaged, forgotten, or storing while its object is being made durable.
        pinned: whether it stays until it is unpinned.
        verified_at: when all that is stored of it was last read, and was as it should be.
        damage: what is wrong with it, if it is damaged.
        tags: words that it can be listed by.
        note: what somebody wants to be remembered of it.
    """

    crid: Crid
    host: str
    target: str | None
    pid: int
    comm: str
    uid: int
    taken_at: datetime
    engine: str
    method: str
    method_reason: str
    state: str = "ok"
    tasks: int
    threads: int
    image_bytes: int
    memory_bytes: int
    stored_bytes: int
    stop_seconds: float
    duration_seconds: float
    digest: str
    tags: list[str] = field(default_factory=list)
    header: dict[str, Any]
    pinned: bool = False
    verified_at: datetime | None = None
    damage: str | None = None
    note: str | None = None


class Place(NamedTuple):
    """Where an image stands in the list of all, the newest first."""

    taken_at: datetime
    crid: Crid
    host: str


class Choice(NamedTuple):
    """An image that retention decides about; ``wanted`` says that a restart of it is asked for."""

    crid: Crid
    taken_at: datetime
    pinned: bool
    damaged: bool
    stored_bytes: int
    wanted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How images and objects were brought together.

    Attributes:
        kept: images that turned out to be whole.
        dropped: images that were not.
        surplus: objects to be removed from the archive.
        unknown: objects that the catalog knows nothing of: to be told of, and left alone.
        missing: images whose object is not there.
    """

    kept: list[Crid]
    dropped: list[Crid]
    surplus: list[Crid]
    unknown: list[Crid]
    missing: list[Crid]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An attempt to take an image."""

    number: int
    target: str | None
    pid: int | None
    state: str
    crid: int | None
    started_at: datetime
    ended_at: datetime | None
    error: str | None
    message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A restart that somebody asked for.

    Attributes:
        gids: None: an administrator asked; else all the groups that the tasks, which must be of the uid, may have.
        boot_id: the boot in which it was carried out; until then, the one that has to be over before it is.
    """

    number: int
    host: str
    crid: Crid
    state: str
    pids: str
    files: str
    tcp: str
    stdio: str
    force_version: bool
    uid: int
    gids: list[int] | None
    requested_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    root_pid: int | None
    root_start_time: int | None
    boot_id: str | None
    error: str | None
    message: str | None
    hint: str | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in {"done", "failed", "cancelled"}
