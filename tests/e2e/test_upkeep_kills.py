"""kill -9 of the daemon while it stores, forgets, scrubs, changes keys and migrates: nothing acknowledged is lost.

``CRD_TEST_KILLS`` says how many kills (by hand: hundreds).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing, suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from crd.api.client import Client
from crd.catalog.upgrade import HEAD, migrations
from crd.errors import CrdError
from tests.e2e.test_encryption import config, new_key
from tests.support.builders import make_image_of_pages
from tests.support.daemon import RunningDaemon
from tests.support.restless import Restless

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.root

KILLS = int(os.environ.get("CRD_TEST_KILLS", "3"))
AGAIN_SECONDS = 0.02


class Upkeep(Restless):
    """Threads that import and forget images and have all checked, whatever becomes of the daemon.

    Attributes:
        there: images that were acknowledged, and that nobody has asked to forget.
        gone: images that are known to be forgotten.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(partial(self._again_and_again, work)
                         for work in (self._import, self._import, self._forget, self._scrub))
        self._pages = [0] * 64
        self._chance = random.Random(5)
        self.there: set[int] = set()
        self.gone: set[int] = set()

    def _again_and_again(self, work: Callable[[], None]) -> None:
        while not self.over.is_set():
            with suppress(CrdError, OSError):
                work()
            time.sleep(AGAIN_SECONDS)

    def _import(self) -> None:
        self._pages[self._chance.randrange(64)] = self._chance.randrange(1000)
        with Client(self._path) as client:
            _, connection = client.upgrade("Import")
            connection.sendall(make_image_of_pages(self._pages))
            connection.shutdown(socket.SHUT_WR)
            self.there.add(client.last()["image"]["crid"])

    def _forget(self) -> None:
        if len(self.there) > 5:
            crid = self._chance.choice(sorted(self.there))
            self.there.discard(crid)
            with Client(self._path) as client:
                [verdict] = client.call("Forget", references=[str(crid)])["verdicts"]
            if not verdict["error"]:
                self.gone.add(crid)

    def _scrub(self) -> None:
        with Client(self._path) as client:
            assert client.call("Scrub")["damaged"] == []


def objects(daemon: RunningDaemon) -> set[int]:
    return {int(path.name[:16], 16) for path in (daemon.state / "archive").glob("*.image.sealed")}


def check(daemon: RunningDaemon, upkeep: Upkeep) -> None:
    listed = {image["crid"] for image in daemon.crctl("images", "--limit", "100000")}
    assert upkeep.there <= listed, "an image that was acknowledged is lost"
    assert not upkeep.gone & listed, "an image that was forgotten is back"
    assert objects(daemon) == listed
    assert daemon.crctl("scrub")["damaged"] == []
    assert not list((daemon.state / "archive").glob("*.part"))


@pytest.mark.timeout(3600)
def test_kills_while_images_come_and_go_and_keys_change(tmp_path: Path) -> None:
    chance = random.Random(11)
    keys = [tmp_path / "0.key"]
    new_key(keys[0])
    with RunningDaemon(tmp_path, config(*keys)) as daemon:
        for number in range(1, KILLS + 1):
            with Upkeep(daemon.socket) as upkeep:
                time.sleep(chance.uniform(0.3, 2))
                daemon.stop(signal.SIGKILL)
            if number % 2:
                keys.insert(0, tmp_path / f"{number}.key")
                new_key(keys[0])
                daemon.config.write_text(config(*keys))
            if number % 3 == 0:  # dies while it begins, too
                dying = subprocess.Popen([sys.executable, "-m", "crd", "run", "--config", daemon.config],
                                         env=daemon.environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                with suppress(subprocess.TimeoutExpired):
                    dying.wait(chance.uniform(0.2, 2))
                dying.kill()
                dying.wait()
            daemon.start()
            check(daemon, upkeep)
        [newest, *_] = daemon.crctl("images")
        for image in daemon.crctl("images", "--limit", "100000"):
            daemon.crctl("forget", str(image["crid"]))
        assert newest["crid"] not in objects(daemon)
        assert not list((daemon.state / "archive").glob("*.pack*")), "garbage is left"


OPEN = """
    import asyncio, sys
    from crd.catalog.catalog import Catalog

    async def main():
        async with await Catalog.open(sys.argv[1], "here") as catalog:
            print(len(await catalog.images.list()), flush=True)

    print(flush=True)
    asyncio.run(main())
"""


def old_catalog(path: Path, images: int) -> None:
    """Make a catalog as the first release made it, with some images."""
    scripts = Config()
    scripts.set_main_option("script_location", str(migrations()))
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        scripts.attributes["connection"] = connection
        command.upgrade(scripts, "20261123_first")
        connection.commit()
    engine.dispose()
    with closing(sqlite3.connect(path)) as database, database:
        columns = database.execute("SELECT name, type, \"notnull\" FROM pragma_table_info('images')").fetchall()
        values = {"host": "here", "state": "ok", "tags": "[]", "header": "{}", "taken_at": "2026-11-23 12:00:00.000000"}
        named = [name for name, _, needed in columns if needed and name != "crid"]
        database.executemany(
            f"INSERT INTO images (crid, {', '.join(named)}) VALUES (?{', ?' * len(named)})",
            ([crid, *(values.get(name, 0) for name in named)] for crid in range(1, images + 1)))


def test_kills_while_a_catalog_is_brought_up_to_date(tmp_path: Path) -> None:
    chance, path = random.Random(3), tmp_path / "catalog.db"
    for _ in range(max(1, KILLS // 3)):
        for left in tmp_path.glob("catalog.db*"):
            left.unlink()
        old_catalog(path, 3000)
        before = shutil.copy(path, tmp_path / "before.db")
        for attempt in count():
            opening = subprocess.Popen([sys.executable, "-c", textwrap.dedent(OPEN), f"sqlite:///{path}"],
                                       stdout=subprocess.PIPE, text=True)
            assert opening.stdout
            opening.stdout.readline()
            with suppress(subprocess.TimeoutExpired):
                opening.wait(chance.uniform(0, 1.5) * 1.3 ** attempt)  # however slow the machine is
            opening.kill()
            said = opening.stdout.read().strip()
            opening.stdout.close()
            opening.wait()
            with closing(sqlite3.connect(path)) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert database.execute("SELECT count(*), sum(crid) FROM images").fetchone() == (3000, 3000 * 3001 // 2)
                [revision] = database.execute("SELECT version_num FROM alembic_version").fetchone()
            assert revision in {"20261123_first", HEAD}, "all of it or nothing"
            if said:
                assert (said, revision) == ("3000", HEAD)
                break
        copies = list(tmp_path.glob("catalog.db.*.bak"))
        assert copies, "what was before is kept"
        with closing(sqlite3.connect(copies[0])) as copy, closing(sqlite3.connect(before)) as known:
            assert [*copy.iterdump()] == [*known.iterdump()]
