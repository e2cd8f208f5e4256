"""Copies of a catalog in a file: made while the daemon works, and put in its place while none does.

Those of PostgreSQL are its own programs' business: pg_dump(1) and pg_restore(1).
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import make_url

from crd.catalog.sqlite import copy_database
from crd.catalog.upgrade import known_revisions
from crd.durable import flush_directory
from crd.errors import CatalogError, CatalogOutOfDate

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPANIONS = ("-wal", "-shm")
_NOT_REPEATED = ("UPDATE requests SET state = 'failed', ended_at = ?, error = 'restart.interrupted', message = 'the "
                 "catalog was restored from a backup', hint = 'It may have been carried out since; ask again if not.' "
                 "WHERE state IN ('queued', 'running', 'releasing')")
"""What was asked for before the backup may have been done since."""


def back_up(url: str, file: Path) -> None:
    """Write a consistent copy of the catalog to a file, which is there whole or not at all; the daemon may work on.

    Raises:
        CatalogError: it cannot be copied, or is no file.
    """
    source = _file_of(url)
    if not source.exists():
        raise CatalogError(f"there is no catalog {source}",
                           hint="Set catalog.url or daemon.state_dir (CRD_DAEMON__STATE_DIR) as its daemon has them.")
    beside = file.with_name(f"{file.name}.{os.getpid()}.new")
    with _translated(file):
        try:
            with _copied(source, beside) as copy:
                _check(copy, source)
            beside.rename(file)
            flush_directory(file.parent)
        finally:
            beside.unlink(missing_ok=True)


def restore(url: str, file: Path) -> Path | None:
    """Put a copy in the place of the catalog, which stays beside it; only while no daemon works on it.

    Requests that were not ended are not carried out again.

    Returns:
        where the catalog that was there is now; None if there was none.

    Raises:
        CatalogOutOfDate: the file is no catalog, or of a newer crd.
        CatalogError: it is damaged, or cannot be put there.
    """
    place = _file_of(url)
    beside = place.with_name(f"{place.name}.{os.getpid()}.new")
    with _translated(file):
        file.stat()  # SQLite would make it
        try:
            with _copied(file, beside) as copy:
                _check(copy, file)
                copy.execute(_NOT_REPEATED, [f"{datetime.now(UTC).replace(tzinfo=None)}"])
            moved = _out_of_the_way(place)
            beside.rename(place)
            flush_directory(place.parent)
        finally:
            beside.unlink(missing_ok=True)
    return moved


def _file_of(url: str) -> Path:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise CatalogError("crd backs up a catalog of SQLite only", hint="PostgreSQL has pg_dump and pg_restore.")
    return Path(parsed.database)


@contextmanager
def _copied(source: Path, copy: Path) -> Iterator[sqlite3.Connection]:
    """Copy a database; at the end of the context all of it is in the one file, durably."""
    copy_database(source, copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as database:
        yield database
        database.execute("PRAGMA journal_mode=DELETE")
    with open(copy, "rb") as file:
        os.fsync(file.fileno())


def _check(database: sqlite3.Connection, file: Path) -> None:
    """Refuse what is no catalog, or damaged."""
    found = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'")]
    revisions = {row[0] for row in database.execute("SELECT version_num FROM alembic_version")} if found else set()
    if not revisions or not revisions <= known_revisions():
        raise CatalogOutOfDate(f"{file} is no catalog, or one of a newer crd", path=str(file),
                               hint="crd catalog backup makes such files.")
    [(verdict,), *_] = database.execute("PRAGMA integrity_check(1)")
    if verdict != "ok":
        raise CatalogError(f"{file} is damaged: {verdict}", path=str(file), hint="Take an older copy.")


def _out_of_the_way(place: Path) -> Path | None:
    """Rename the catalog that is there: never is another one beside what this one had not written back yet."""
    if not place.exists():
        for companion in _COMPANIONS:
            place.with_name(place.name + companion).unlink(missing_ok=True)
        return None
    with suppress(sqlite3.Error), closing(sqlite3.connect(place)) as old:  # damaged: it moves as it is
        old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    moved = place.with_name(f"{place.name}.{datetime.now(UTC):%Y%m%dT%H%M%S}.bak")
    for companion in (*_COMPANIONS, ""):
        with suppress(FileNotFoundError):
            place.with_name(place.name + companion).rename(moved.with_name(moved.name + companion))
    return moved


@contextmanager
def _translated(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB:
            raise CatalogOutOfDate(f"{file} is no SQLite database", path=str(file)) from error
        raise CatalogError(f"{file}: {error}", path=str(file)) from error
    except OSError as error:
        raise CatalogError(f"{file}: {error.strerror}", path=str(file),
                           hint="Name a file, in a directory that is there, which you may read and write.") from error
