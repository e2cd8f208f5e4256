"""A machine whose power is cut, whose disk fills or fails, at the n-th thing that is done to its files."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection

    from crd.archive.needs import Needs
    from crd.catalog.session import Database

T = TypeVar("T")

_TAKES_ROOM = {"open", "writev", "fdatasync", "link", "begin", "commit"}


class Killed(BaseException):
    """The process is no more: nothing that it does from now on has any effect."""


class Power:
    """What everything asks before it is done.

    Attributes:
        dead: whether the process was killed.
        faults: how many things failed.
    """

    def __init__(self) -> None:
        self.dead = False
        self.faults = 0
        self._kind = ""
        self._left = 0

    def arm(self, kind: str, n: int) -> None:
        """Have the n-th thing from now on meet a ``kill``, an ``error``, or the first of a disk that stays ``full``."""
        self._kind, self._left = kind, n

    def restore(self) -> None:
        """Have everything work again."""
        self.dead, self._kind = False, ""

    @contextmanager
    def calm(self) -> Iterator[None]:
        """Let what is done meanwhile neither fail nor count."""
        kind, self._kind = self._kind, ""
        try:
            yield
        finally:
            self._kind = kind

    def step(self, what: str) -> None:
        """Let a thing be done, or raise Killed or OSError."""
        if self.dead:
            raise Killed
        if not self._kind or (self._kind == "full" and what not in _TAKES_ROOM):
            return
        if what == "committed" and self._kind != "kill":
            return
        self._left -= 1
        if self._left > 0:
            return
        self.faults += 1
        if self._kind == "kill":
            self.dead = True
            raise Killed
        if self._kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._kind = ""
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def path(self, path: Path) -> Path:
        """Return a path that asks before it unlinks."""
        power = self

        class Asking(type(path)):  # type: ignore[misc]
            def unlink(self, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002  as it is there
                if not power.dead:  # what a kill leaves is left, and nobody hears of it
                    power.step("unlink")
                    super().unlink(missing_ok)

        asking: Path = Asking(path)
        return asking

    def ask_for_transactions_of(self, database: Database) -> None:
        """Have a catalog ask before it begins and commits."""
        real_write, real_read = database.write, database.read

        async def write(work: Callable[[Connection], T], *, is_durable: bool = True) -> T:
            def asking(connection: Connection) -> T:
                self.step("begin")
                result = work(connection)
                self.step("commit")
                return result

            written = await real_write(asking, is_durable=is_durable)
            self.step("committed")
            return written

        async def read(work: Callable[[Connection], T]) -> T:
            def asking(connection: Connection) -> T:
                self.step("read")
                return work(connection)

            return await real_read(asking)

        database.write, database.read = write, read  # type: ignore[method-assign]

    def ask_for_transactions_of_needs(self, needs: Needs) -> None:
        """Have a file of needs ask likewise."""
        real = needs._transaction

        @contextmanager
        def transaction() -> Iterator[Any]:
            with real() as database:
                before = database.total_changes
                self.step("read")
                yield database
                self.step("commit" if database.total_changes > before else "read")

        needs._transaction = transaction  # type: ignore[method-assign]


class AskingOs:
    """The module ``os``, for the local store: it asks first, and flushes nothing, which only a real cut would show."""

    def __init__(self, power: Power) -> None:
        self._power = power

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, flags: int, *arguments: Any) -> int:
        self._power.step("open" if flags & os.O_CREAT else "read")
        return os.open(path, flags, *arguments)

    def writev(self, *arguments: Any) -> int:
        self._power.step("writev")
        return os.writev(*arguments)

    def pread(self, *arguments: Any) -> bytes:
        self._power.step("read")
        return os.pread(*arguments)

    def fdatasync(self, _fd: int) -> None:
        self._power.step("fdatasync")

    def link(self, *arguments: Any) -> None:
        self._power.step("link")
        os.link(*arguments)
