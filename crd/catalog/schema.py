"""The tables.  ``migrations/`` makes them; a test holds the two against each other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    cast,
    exists,
    false,
    func,
    select,
    text,
)

if TYPE_CHECKING:
    from sqlalchemy import CTE, ColumnElement
    from sqlalchemy.engine import Dialect

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
}
metadata = MetaData(naming_convention=NAMES)


class Instant(TypeDecorator[datetime]):
    """A point in time: aware, kept in UTC."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Keep UTC without saying so: SQLite knows no zones."""
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Say that it is UTC."""
        return value.replace(tzinfo=UTC) if value else None


Number = BigInteger().with_variant(Integer, "sqlite")
"""63 bits; SQLite counts rows only by an INTEGER, which has as many."""

UNUSUAL = text("state <> 'ok'")
"""Of few images: a query that is to find them by their index has to say it in these words."""

hosts = Table(
    "hosts", metadata,
    Column("host", String(255), primary_key=True),
    Column("seen_at", Instant, nullable=False),
)

images = Table(
    "images", metadata,
    Column("host", String(255), primary_key=True),
    Column("crid", Number, primary_key=True, autoincrement=False),
    Column("target", String(64)),
    Column("pid", Integer, nullable=False),
    Column("comm", String(64), nullable=False),
    Column("uid", Number, nullable=False),
    Column("taken_at", Instant, nullable=False),
    Column("engine", String(16), nullable=False),
    Column("method", String(16), nullable=False),
    Column("method_reason", Text, nullable=False),
    Column("state", String(16), nullable=False),  # storing, ok, damaged, forgotten
    Column("tasks", Integer, nullable=False),
    Column("threads", Integer, nullable=False),
    Column("image_bytes", Number, nullable=False),
    Column("memory_bytes", Number, nullable=False),
    Column("stored_bytes", Number, nullable=False),
    Column("stop_seconds", Float, nullable=False),
    Column("duration_seconds", Float, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("header", JSON, nullable=False),
    Column("pinned", Boolean, nullable=False, server_default=false()),
    Column("verified_at", Instant),
    Column("damage", Text),
    Column("note", Text),
    Index("ix_images_target_taken_at", "target", "taken_at"),
    Index("ix_images_taken_at", "taken_at"),
    # With all that ``Images.choices`` asks for: to look up each row besides takes four times as long.
    Index("ix_images_target_crid", "host", "target", "crid", "state", "taken_at", "pinned", "stored_bytes"),
    Index("ix_images_pid_crid", "host", "pid", "crid"),
    Index("ix_images_uid_taken_at", "uid", "taken_at"),
    Index("ix_images_verified_at", "host", "verified_at", "taken_at"),
    Index("ix_images_unusual", "host", "state", sqlite_where=UNUSUAL, postgresql_where=UNUSUAL),
)

checkpoints = Table(
    "checkpoints", metadata,
    Column("number", Number, primary_key=True),
    Column("host", String(255), nullable=False),
    Column("target", String(64)),
    Column("pid", Integer),
    Column("state", String(16), nullable=False),  # running, ok, failed, refused, skipped
    Column("crid", Number),
    Column("started_at", Instant, nullable=False),
    Column("ended_at", Instant),
    Column("error", String(64)),
    Column("message", Text),
    Index("ix_checkpoints_target_number", "host", "target", "number"),
)

targets = Table(
    "targets", metadata,
    Column("host", String(255), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("definition", JSON, nullable=False),
)

holds = Table(
    "holds", metadata,
    Column("host", String(255), primary_key=True),
    Column("target", String(64), primary_key=True),
    Column("held", Boolean, nullable=False),
)

requests = Table(
    "requests", metadata,
    Column("number", Number, primary_key=True),
    Column("host", String(255), nullable=False),
    Column("crid", Number, nullable=False),
    Column("state", String(16), nullable=False),  # queued, running, releasing, done, failed, cancelled
    Column("pids", String(16), nullable=False),
    Column("files", String(16), nullable=False),
    Column("uid", Number, nullable=False),
    Column("requested_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("ended_at", Instant),
    Column("root_pid", Integer),
    Column("root_start_time", Number),
    Column("boot_id", String(36)),
    Column("error", String(64)),
    Column("message", Text),
    Column("hint", Text),
    Column("gids", JSON(none_as_null=True)),
    Column("tcp", String(16), nullable=False, server_default="auto"),
    Column("stdio", String(16), nullable=False, server_default="pty"),
    Column("force_version", Boolean, nullable=False, server_default=false()),
    ForeignKeyConstraint(["host", "crid"], ["images.host", "images.crid"]),
    Index("ix_requests_state", "host", "state"),
    Index("ix_requests_crid", "host", "crid"),
    Index("ix_requests_uid", "uid", "number"),
    sqlite_autoincrement=True,
)


def has_tag(tag: str, dialect: Dialect) -> ColumnElement[bool]:
    """Return whether an image has a tag, as a condition."""
    texts = func.json_each if dialect.name == "sqlite" else func.json_array_elements_text
    value = texts(images.c.tags).table_valued("value").c.value
    return (cast(images.c.tags, Text) != "[]") & exists().where(value == tag)  # the first is quick, and of most images


def each_target(table: Table, host: str) -> CTE:
    """Return the targets of a host that a table tells of, as ``target``, with a NULL behind them.

    It goes by an index from one to the next, past all but the first row of each.
    """
    own = table.c.host == host
    first = select(func.min(table.c.target).label("target")).where(own).cte("names", recursive=True)
    following = select(func.min(table.c.target)).where(own, table.c.target > first.c.target)
    return first.union_all(select(following.scalar_subquery()).where(first.c.target.is_not(None)))
