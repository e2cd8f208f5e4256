"""SQLite: one file, one host.

A transaction that begins by reading and then writes fails at once under another writer, whatever the busy timeout:
SQLite cannot turn its snapshot into the newest one.  So one that may write begins by taking the write lock.  Within
this process there is one thread that writes, since SQLite's own waiting is asking again after up to 100 ms.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sqlalchemy import create_engine, event
from sqlalchemy.exc import OperationalError

from crd.errors import CatalogBusy, CatalogError, CatalogFull, CatalogOutOfDate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import URL, Connection, Engine

T = TypeVar("T")

_READS = "crd_reads"
"""The execution option of a transaction that only reads."""
_HASTY = "crd_hasty"
"""The execution option of one that outlives our death, and need not outlive a power cut: it saves a flush."""
_READERS = 4
_BUSY_SECONDS = 20
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}  # the latter, when it is opened
_LOOK_AGAIN_SECONDS = 0.02
_ROOM = "Free some space; crctl forget, crctl pin --remove and the rules of retention work all the same."
_REPAIR = ("crd catalog restore puts back a backup; without one move the file away, start the daemon, and crctl adopt "
           "takes in what the archive has.")


class Sqlite:
    """A file; see ``crd.catalog.backend``."""

    sessions = announcement = None

    def __init__(self, url: URL) -> None:
        """Use a file, which is made if it is missing.

        Raises:
            CatalogError: it cannot be made, or is no file.
        """
        self._path = Path(url.database or "")
        with _translated_os(self._path):
            _make(self._path)  # readable by nobody else; SQLite gives its companions (-wal, -shm) the same mode
        self.engine = create_engine(url.set(drivername="sqlite"), json_deserializer=msgspec.json.decode,
                                    connect_args={"timeout": _BUSY_SECONDS})
        _set_up(self.engine)
        self._hasty = self.engine.execution_options(**{_HASTY: True})
        self._reader = self.engine.execution_options(**{_READS: True})
        self._writing = ThreadPoolExecutor(1, "crd-catalog-write")
        self._reading = ThreadPoolExecutor(_READERS, "crd-catalog-read")

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Do it in one of some threads."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, _transacted, self._reader, work)

    async def write(self, work: Callable[[Connection], T], *, is_durable: bool = True) -> T:
        """Do it in the one thread that writes."""
        return await asyncio.get_running_loop().run_in_executor(
            self._writing, _transacted, self.engine if is_durable else self._hasty, work)

    async def close(self) -> None:
        """Close them, which may write back what is in the write-ahead log."""
        await asyncio.get_running_loop().run_in_executor(self._writing, self.engine.dispose)
        for executor in (self._writing, self._reading):
            executor.shutdown()

    def prepare(self) -> None:
        """Switch to write-ahead logging, which the file remembers.

        Raises:
            CatalogError: it cannot be switched.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        with closing(sqlite3.connect(self._path)) as database:
            while True:  # for this SQLite does not wait by itself
                try:
                    database.execute("PRAGMA journal_mode=WAL")
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                        raise CatalogError(f"the catalog: {error}") from error
                    if time.monotonic() > deadline:
                        raise CatalogBusy(hint="Try again; find who holds it with fuser catalog.db.") from error
                    time.sleep(_LOOK_AGAIN_SECONDS)
                else:
                    return

    def back_up(self, revision: str) -> None:
        """Copy the file beside itself, by SQLite's own means."""
        copy = self._path.with_name(f"{self._path.name}.{revision}.bak")
        try:
            copy_database(self._path, copy)
        except (OSError, sqlite3.Error) as error:
            raise CatalogError(f"backing up the catalog to {copy}: {error}", path=str(copy)) from error

    def lock_schema(self, connection: Connection) -> None:
        """Nothing: the transaction has the write lock."""

    def opened(self) -> None:
        """Close the files to others, whatever they were restored with."""
        with _translated_os(self._path):
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    self._path.with_name(self._path.name + suffix).chmod(0o600)

    def translated(self, error: Exception) -> CatalogError:
        """Return what an error of sqlite3 means."""
        cause = getattr(error, "orig", None)
        if getattr(cause, "sqlite_errorcode", 0) in _FULL:
            return CatalogFull(f"the catalog {self._path}: {cause}", hint=_ROOM)
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the upper bits say more than we need
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return CatalogBusy(hint="Try again; find who holds it with fuser catalog.db.")
        if code == sqlite3.SQLITE_NOTADB:
            return CatalogOutOfDate(f"the catalog {self._path} is damaged, or no SQLite database",
                                    path=str(self._path), hint=f"{_REPAIR} Or point catalog.url at another file.")
        hints = {
            sqlite3.SQLITE_IOERR: "The disk failed; the kernel's log says more.",
            sqlite3.SQLITE_READONLY: "Make the file and its directory writable.",
            sqlite3.SQLITE_CORRUPT: _REPAIR,
        }
        return CatalogError(f"the catalog {self._path}: {cause or error}", hint=hints.get(code, ""))


def _transacted(engine: Engine, work: Callable[[Connection], T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def copy_database(path: Path, copy: Path) -> None:
    """Copy a database as it is at one moment, by SQLite's own means, durably, to a file that only its owner reads.

    Raises:
        OSError, sqlite3.Error: the copy is not whole.
    """
    fd = os.open(copy, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as sink:
            source.backup(sink)
        os.fsync(fd)
    finally:
        os.close(fd)


def _make(path: Path) -> None:
    """Make the file if it is missing."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is no file")
    finally:
        os.close(fd)


@contextmanager
def _translated_os(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CatalogError(f"the catalog {path}: {error.strerror}", path=str(path)) from error


def _set_up(engine: Engine) -> None:
    """Set up every connection; sqlite3 is to begin no transactions by itself."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        options, driver = connection.get_execution_options(), connection.connection.driver_connection
        statement = "BEGIN" if options.get(_READS) else "BEGIN IMMEDIATE"
        try:  # past SQLAlchemy, for which each statement is a lot of work
            if not options.get(_READS):
                # In WAL mode NORMAL leaves the flushing to a later commit; FULL costs 1 to 8 ms.
                driver.execute(f"PRAGMA synchronous={'NORMAL' if options.get(_HASTY) else 'FULL'}")
            driver.execute(statement)
        except sqlite3.Error as error:
            raise OperationalError(statement, None, error) from error
