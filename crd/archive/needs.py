"""What images need, in a file: an archive of any size is known without being held in memory.

The file can be made anew from the store at any time, and is whenever it may not be the whole truth of that store: then
it does not have the **token** that the store has.  Each pack has a sum of **marks**, one of each image that needs it;
nobody needs a pack whose sum is 0.  A sum that was damaged, or a row that is missing, is never taken for that.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from blake3 import blake3

from crd.archive.manifest import NEED
from crd.errors import ArchiveError, ArchiveFull, ArchiveUnavailable, BlobCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from crd.archive.manifest import Need
    from crd.reserve import Reserve

P = ParamSpec("P")
T = TypeVar("T")

_VERSION = 1
_COMPANIONS = ("", "-wal", "-shm")
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}  # the latter, when it is opened
_SCHEMA = f"""
    CREATE TABLE images (crid INTEGER PRIMARY KEY, needs BLOB NOT NULL);
    CREATE TABLE packs (pack INTEGER PRIMARY KEY, marks INTEGER NOT NULL);
    CREATE TABLE store (token INTEGER NOT NULL);
    PRAGMA user_version = {_VERSION};
"""


def _freeing(method: Callable[Concatenate[Needs, P], T]) -> Callable[Concatenate[Needs, P], T]:
    """Do what makes room; if there is none, again with some of the reserve."""
    @wraps(method)
    def done(needs: Needs, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        while True:
            try:
                return method(needs, *arguments, **keywords)
            except ArchiveFull:
                if not (needs.reserve and needs.reserve.give()):
                    raise

    return done


class Needs:
    """A table of images and one of packs.  Every method may be called from any thread, and may block."""

    def __init__(self, path: Path | None, reserve: Reserve | None = None) -> None:
        """Use a file, which is made anew if it is missing, damaged or of another version; None: memory.

        Args:
            path: of the file.
            reserve: for what makes room on a full disk.

        Raises:
            ArchiveFull, ArchiveUnavailable: it cannot be made.
        """
        self._path = path
        self.reserve = reserve
        self._lock = threading.Lock()
        with self._translated():
            self._database = _opened(path)

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._translated():
            self._database.close()

    @property
    def is_kept(self) -> bool:
        """Whether it outlives this process."""
        return self._path is not None

    @property
    def token(self) -> int | None:
        """What the store has, too, if this is the truth of it."""
        with self._transaction() as database:
            return next((token for token, in database.execute("SELECT token FROM store")), None)

    @_freeing
    def vouch(self, token: int | None) -> None:
        """Take note that this is the truth of the store with a token, or that it may not be."""
        with self._transaction() as database:
            database.execute("DELETE FROM store")
            if token is not None:
                database.execute("INSERT INTO store VALUES (?)", [token])

    @_freeing
    def begin_anew(self, but: Collection[int]) -> None:
        """Know nothing any more but these images, and vouch for nothing."""
        with self._transaction() as database:
            known = [(crid, _needs(database, crid)) for crid, in database.execute("SELECT crid FROM images")
                     if crid in but]
            for forget in ("DELETE FROM store", "DELETE FROM images", "DELETE FROM packs"):
                database.execute(forget)
            for crid, needs in known:
                _enter(database, crid, needs)

    def enter(self, images: Iterable[tuple[int, list[Need]]]) -> None:
        """Take in images and what they need: all, or none.

        Raises:
            ArchiveError: one is known already.
        """
        with self._transaction() as database:
            for crid, needs in images:
                _enter(database, crid, needs)

    @_freeing
    def leave(self, crid: int) -> None:
        """Take note that an image needs nothing any more; nothing if it is unknown.

        Raises:
            BlobCorrupt: the file is damaged; nothing has changed.
        """
        with self._transaction() as database:
            for pack, _ in _needs(database, crid):
                done = database.execute("UPDATE packs SET marks = marks - ?1 WHERE pack = ?2 AND marks >= ?1",
                                        [_mark(crid), pack])
                if not done.rowcount:
                    raise BlobCorrupt(f"{self._path}: nothing is known of a pack that image {crid} needs")
            database.execute("DELETE FROM images WHERE crid = ?", [crid])

    def of(self, crid: int) -> list[Need]:
        """Return what an image needs; nothing if it is unknown."""
        with self._transaction() as database:
            return _needs(database, crid)

    def needing(self, pack: int) -> list[int]:
        """Return the images that need a pack; all that are known are looked at."""
        with self._transaction() as database:
            found = [crid for crid, in database.execute("SELECT crid FROM images WHERE instr(needs, ?)",
                                                        [pack.to_bytes(8, "little")])]
            return [crid for crid in found if any(number == pack for number, _ in _needs(database, crid))]

    def shared(self, crid: int) -> list[tuple[int, bool]]:
        """Return of each pack that an image needs how many pages it needs, and whether others need the pack, too."""
        with self._transaction() as database:
            return [(pages, _marks(database, pack) != _mark(crid)) for pack, pages in _needs(database, crid)]

    def unneeded(self, packs: Iterable[int], but_for: int | None = None) -> list[int]:
        """Return which of these packs are known to be needed by no image, or by no other one."""
        without = {0, _mark(but_for)} if but_for is not None else {0}
        with self._transaction() as database:
            return [pack for pack in packs if _marks(database, pack) in without]

    def dead(self) -> list[int]:
        """Return all packs that are known to be needed by no image."""
        with self._transaction() as database:
            return [pack for pack, in database.execute("SELECT pack FROM packs WHERE marks = 0")]

    def n_images(self) -> int:
        """Return how many images are known."""
        with self._transaction() as database:
            return int(database.execute("SELECT count(*) FROM images").fetchone()[0])

    def unknown(self, packs: Iterable[int]) -> list[int]:
        """Return of which packs nothing is known."""
        with self._transaction() as database:
            return [pack for pack in packs if _marks(database, pack) is None]

    @_freeing
    def bury(self, packs: Iterable[int]) -> None:
        """Know nothing any more of packs that nobody needs."""
        with self._transaction() as database:
            database.executemany("DELETE FROM packs WHERE pack = ? AND marks = 0", [(pack,) for pack in packs])

    def differences(self, images: Iterable[int]) -> tuple[list[int], list[int]]:
        """Return which of these images are unknown, and which are known that are not among them."""
        with self._transaction() as database:
            unread, gone = set(images), []
            for crid, in database.execute("SELECT crid FROM images"):
                if crid in unread:
                    unread.discard(crid)
                else:
                    gone.append(crid)
        return sorted(unread), gone

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            self._database.execute("BEGIN")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of SQLite into the archive's, in this one place."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise ArchiveError("there is an image of that crid already") from error
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) in _FULL:
                raise ArchiveFull(f"{self._path}: {error}", path=str(self._path), hint="Free some space.") from error
            raise ArchiveUnavailable(f"{self._path}: {error}", path=str(self._path),
                                     hint="A new start makes it from the store if it is damaged.") from error
        except OSError as error:
            raise ArchiveUnavailable(f"{self._path}: {error.strerror}", path=str(self._path)) from error


def _opened(path: Path | None) -> sqlite3.Connection:
    if path:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    database = _connected(path)
    if not _is_sound(database):
        database.close()
        if path:
            for companion in _COMPANIONS:
                path.with_name(path.name + companion).unlink(missing_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        database = _connected(path)
        database.executescript(f"PRAGMA journal_mode=WAL; {_SCHEMA}")
    database.execute("PRAGMA synchronous=NORMAL")  # a power cut may take back what was last: it is seen at the start
    return database


def _connected(path: Path | None) -> sqlite3.Connection:
    return sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)


def _is_sound(database: sqlite3.Connection) -> bool:
    try:
        version, check = (database.execute(f"PRAGMA {what}").fetchone() for what in ("user_version", "quick_check(1)"))
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode in _FULL:
            database.close()
            raise
        return False
    return (version, check) == ((_VERSION,), ("ok",))


def _enter(database: sqlite3.Connection, crid: int, needs: list[Need]) -> None:
    database.execute("INSERT INTO images VALUES (?, ?)", [crid, b"".join(NEED.pack(*need) for need in needs)])
    database.executemany("INSERT INTO packs VALUES (?1, ?2) ON CONFLICT DO UPDATE SET marks = marks + ?2",
                         [(pack, _mark(crid)) for pack, _ in needs])


def _needs(database: sqlite3.Connection, crid: int) -> list[Need]:
    found = database.execute("SELECT needs FROM images WHERE crid = ?", [crid]).fetchone()
    try:
        return list(NEED.iter_unpack(found[0])) if found else []
    except (struct.error, TypeError) as error:
        raise BlobCorrupt(f"what image {crid} needs is damaged") from error


def _marks(database: sqlite3.Connection, pack: int) -> int | None:
    found = database.execute("SELECT marks FROM packs WHERE pack = ?", [pack]).fetchone()
    return found[0] if found else None


def _mark(crid: int) -> int:
    """Return 40 bits, so that the sum of what any number of images have fits a column, and none is that of others."""
    return int.from_bytes(blake3(crid.to_bytes(8, "little")).digest(length=5), "little") | 1
