"""Catalog and archive under everything that users, rules, disks and kills do to them, in any order.

``CRD_TEST_EXAMPLES`` says how many histories are tried (by hand: thousands).
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from crd.archive.archive import Archive
from crd.archive.keys import Key, KeyRing
from crd.archive.manifest import NO_PACK
from crd.archive.names import numbered
from crd.archive.stores import local
from crd.archive.stores.local import LocalStore
from crd.archive.stores.sealed import SealedStore
from crd.catalog.backup import back_up, restore
from crd.catalog.catalog import Catalog
from crd.daemon.adoption import adopt_all
from crd.daemon.app import App
from crd.daemon.meter import Meter
from crd.daemon.pipeline import Pipeline
from crd.daemon.retention import Retention
from crd.daemon.scrub import Scrub
from crd.daemon.transfer import export_image, import_image
from crd.engine.crid import CridCounter
from crd.errors import CrdError, ImageInUse
from crd.ids import Crid
from crd.settings.models import DaemonSettings, EngineSettings, RetentionSettings, Settings
from tests.support.builders import make_image_of_pages
from tests.support.power import AskingOs, Killed, Power
from tests.unit.archive.streams import read_image, write_all
from tests.unit.catalog.test_catalog import image

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from crd.archive.stores.store import Store
    from crd.catalog.rows import Image

EXAMPLES = int(os.environ.get("CRD_TEST_EXAMPLES", "10"))
STEPS = 30
VMA_PAGES = 48
TARGETS = ("web", "db")
T = TypeVar("T")


@dataclass
class Expected:
    """An image that was acknowledged, or may be there: its stream, and whether somebody pinned it."""

    data: bytes
    pinned: bool = False


@dataclass
class Life:
    """What a daemon has open from its start to its end."""

    store: Store
    catalog: Catalog
    archive: Archive
    app: App
    pipeline: Pipeline
    retention: Retention
    scrub: Scrub
    faulty: bool = False  # something failed: what could not be removed is left until the next start
    forgotten_rows: set[int] = field(default_factory=set)


class Host(RuleBasedStateMachine):
    """A host whose daemon is killed, whose disk fills, and whose operator changes keys and restores backups."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="crd-state-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.power = Power()
        self.runner = asyncio.Runner()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(local, "os", AskingOs(self.power))
        self.patches.setattr(local, "flush_directory", lambda _directory: self.power.step("fsync"))
        self.keys: list[Key] = []
        self.there: dict[int, Expected] = {}
        self.perhaps: dict[int, Expected] = {}  # was under way when something failed: there whole, or not at all
        self.pages = {target: [0] * VMA_PAGES for target in TARGETS}
        self.life: Life | None = None
        self.backup: Path | None = None
        self.turn = 0

    @initialize(encrypted=st.booleans())
    def begin(self, *, encrypted: bool) -> None:
        self.keys = [Key(random.Random(7).randbytes(32))] if encrypted else []
        self.run(self.start())
        for of, at in (("web", 1), ("web", 9), ("db", 2), ("web", 40)):
            self.take(of, [(page, 7 * page) for page in range(at, VMA_PAGES, 3)])

    # what is done to it

    @rule(of=st.sampled_from(TARGETS), written=st.lists(st.tuples(
        st.integers(0, VMA_PAGES - 1), st.integers(0, 60)), max_size=12))
    def take(self, of: str, written: list[tuple[int, int]]) -> None:
        for at, number in written:
            self.pages[of][at] = number
        data = make_image_of_pages(self.pages[of])
        self.attempt(lambda life: self._take(life, of, data))

    async def _take(self, life: Life, target: str, data: bytes) -> None:
        crid = CridCounter(life.pipeline.crid_file).next()
        self.perhaps[crid] = Expected(data)
        base = await life.catalog.images.relative(TARGETS.index(target), target)
        async with life.pipeline.sink(base) as sink:
            read_end, write_end = os.pipe()
            writing = asyncio.create_task(asyncio.to_thread(_write_quietly, write_end, data))
            try:
                await sink.drain(read_end)
            finally:
                os.close(read_end)
                await writing
            await life.pipeline.keep(sink, image(crid, target=target, pid=TARGETS.index(target), digest=sink.digest,
                                                 image_bytes=sink.image_bytes))
        self.there[crid] = self.perhaps.pop(crid)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        if self.there:
            crid = data.draw(st.sampled_from(sorted(self.there)))
            self.attempt(lambda life: self._forget(life, crid))

    async def _forget(self, life: Life, crid: int) -> None:
        if self.there[crid].pinned:
            try:
                await life.retention.forget(Crid(crid))
            except ImageInUse:
                return
            raise AssertionError("a pinned image was forgotten")
        self.perhaps[crid] = self.there.pop(crid)
        await life.retention.forget(Crid(crid))
        del self.perhaps[crid]

    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, *, pinned: bool) -> None:
        if self.there:
            crid = data.draw(st.sampled_from(sorted(self.there)))
            self.attempt(lambda life: self._pin(life, crid, pinned=pinned))

    async def _pin(self, life: Life, crid: int, *, pinned: bool) -> None:
        await life.catalog.images.pin(Crid(crid), pinned=pinned)
        self.there[crid].pinned = pinned

    @rule()
    def scrub(self) -> None:
        self.attempt(self._scrub)

    async def _scrub(self, life: Life) -> None:
        async def tell(_so_far: object) -> None:
            """Nobody asks."""

        assert (await life.scrub.all(tell)).damaged == []

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def export_and_import(self, data: st.DataObject) -> None:
        crid = data.draw(st.sampled_from(sorted(self.there)))
        self.attempt(lambda life: self._export_and_import(life, crid))

    async def _export_and_import(self, life: Life, crid: int) -> None:
        parts: list[bytes] = []

        async def begin(_image: Image) -> None:
            """Its row is known."""

        async def write(part: bytes) -> None:
            parts.append(part)

        await export_image(life.pipeline, Crid(crid), begin, write)
        exported = b"".join(parts)
        assert exported == self.there[crid].data
        left = iter((exported, b""))

        async def read() -> bytes:
            return next(left)

        upcoming = int(life.pipeline.crid_file.read_text() or 0) + 1
        self.perhaps[upcoming] = Expected(exported)
        imported = await import_image(life.pipeline, read)
        assert imported.crid == upcoming
        self.there[upcoming] = self.perhaps.pop(upcoming)

    @rule(number=st.integers(0, 3))
    def rotate_keys(self, number: int) -> None:
        if self.keys:
            key = Key(random.Random(100 + number).randbytes(32))
            self.keys = [key, *(old for old in self.keys if old.id != key.id)]
            self.restart()

    @rule()
    def restart(self) -> None:
        self.run(self.stop())
        self.run(self.start())

    @rule()
    def lose_needs(self) -> None:
        self.run(self.stop())
        (self.home / "needs.db").unlink()
        self.run(self.start())

    @rule()
    def back_up(self) -> None:
        self.backup = self.home / "backup.db"
        back_up(self.url, self.backup)

    @precondition(lambda self: self.backup)
    @rule()
    def restore_the_backup(self) -> None:
        """What is missing since is forgotten by hand, and what the backup does not know is adopted."""
        assert self.backup
        self.run(self.stop())
        restore(self.url, self.backup)
        for old in self.home.glob("catalog.db.*.bak*"):
            old.unlink()
        self.run(self.start())
        self.run(self._reconcile())

    async def _reconcile(self) -> None:
        life = self.here

        async def tell(_so_far: object) -> None:
            """Nobody asks."""

        for crid in life.app.without_object:
            assert crid not in self.there
            await life.catalog.images.pin(crid, pinned=False)
            await life.retention.forget(crid)
        assert (await adopt_all(life.pipeline, None, tell)).failed == 0
        pinned = {found.crid: found.pinned for found in await life.catalog.images.list()}
        for crid, expected in self.there.items():
            expected.pinned = pinned[Crid(crid)]

    @rule(kind=st.sampled_from(["kill", "kill", "full", "error"]), n=st.integers(1, 60))
    def have_something_fail(self, kind: str, n: int) -> None:
        self.power.arm(kind, n)

    # how it is done

    @property
    def url(self) -> str:
        return f"sqlite:///{self.home}/catalog.db"

    @property
    def here(self) -> Life:
        assert self.life
        return self.life

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def attempt(self, work: Any) -> None:
        """Do something, which may only fail if something was made to; a kill is followed by a start."""
        faults = self.power.faults
        try:
            self.run(work(self.here))
        except Killed:
            pass
        except CrdError:
            assert self.power.faults > faults, "nothing was wrong"
            self.here.faulty = True
        finally:
            if self.power.dead:
                self.run(self.stop())
                self.power.restore()
                self.run(self.start())
            elif self.power.faults > faults:
                self.here.faulty = True
            self.power.restore()

    async def start(self) -> None:
        """Start; what is armed may strike meanwhile, once."""
        try:
            await self._start()
        except (Killed, CrdError):
            assert self.power.faults
            await self.stop()
            self.power.restore()
            await self._start()
        finally:
            self.power.restore()
        listed = {found.crid for found in await self.here.catalog.images.list()}
        self.there |= {crid: self.perhaps[crid] for crid in self.perhaps.keys() & listed}
        self.perhaps.clear()

    async def _start(self) -> None:
        store: Store = LocalStore(self.power.path(self.home / "archive"))
        if self.keys:
            sealed = SealedStore(store, KeyRing(self.keys))
            await sealed.prepare()
            store = sealed
        app = App(Settings(daemon=DaemonSettings(state_dir=self.home), retention=RetentionSettings(scrub_rate=1 << 60),
                           engine=EngineSettings(crid_file=self.home / "crid")))
        catalog = await Catalog.open(self.url, "here")
        self.power.ask_for_transactions_of(catalog._database)
        archive = Archive(store, needs=self.home / "needs.db")
        self.power.ask_for_transactions_of_needs(archive._references._needs)
        pipeline = Pipeline(None, archive, catalog, self.home / "crid", "here", None, 60, 60)  # type: ignore[arg-type]
        self.life = Life(
            store, catalog, archive, app, pipeline,
            Retention(catalog, archive, app.clock, app.readers, Meter(archive, None, app.metrics),
                      lambda: app.settings.retention, {}),
            Scrub(pipeline, app.metrics, app.clock, app.readers, lambda: app.settings.retention))
        app.catalog, app.archive = catalog, archive
        await archive.__aenter__()
        await (await app._recover())()

    async def stop(self) -> None:
        life, self.life = self.life, None
        if life:
            await life.catalog.__aexit__(None, None, None)
            life.archive._references.close()

    # what must hold

    @invariant()
    def what_was_acknowledged_is_there_and_nothing_else(self) -> None:
        if self.life:
            with self.power.calm():
                self.run(self._check())

    async def _check(self) -> None:
        life = self.here
        listed = {found.crid: found for found in await life.catalog.images.list()}
        assert self.there.keys() <= listed.keys() <= self.there.keys() | self.perhaps.keys()
        assert {found.pinned for crid, found in listed.items() if crid in self.there} <= {True, False}
        images = {*await life.archive.crids()}
        assert listed.keys() - self.perhaps.keys() <= images <= self.there.keys() | self.perhaps.keys()
        if self.there:
            self.turn += 1
            await self._read(life, sorted(self.there)[self.turn % len(self.there)])
        needed = {pack for crid in images for pack, _ in (await life.archive.source(crid)).manifest.packs} - {NO_PACK}
        packs = {*numbered(await life.store.objects(), "pack")}
        assert needed <= packs
        if not life.faulty:
            assert packs == needed, "garbage"
            assert not list((self.home / "archive").glob("*.part"))

    async def _read(self, life: Life, crid: int) -> None:
        await life.pipeline.verify(await life.catalog.images.get(Crid(crid)))
        assert await read_image(life.archive, crid) == self.there[crid].data

    def teardown(self) -> None:
        """All is as it should be, and nothing is left when all is forgotten."""
        try:
            if self.life:
                self.power.restore()
                self.restart()
                self.run(self._check_all())
                self.run(self.stop())
        finally:
            self.patches.undo()
            self.runner.close()
            shutil.rmtree(self.home)

    async def _check_all(self) -> None:
        life = self.here
        for crid in sorted(self.there):
            await self._read(life, crid)
            await life.catalog.images.pin(Crid(crid), pinned=False)
        for crid in sorted(self.there):
            await life.retention.forget(Crid(crid))
        left = await life.store.objects()
        assert not numbered(left, "image")
        assert not numbered(left, "pack")


def _write_quietly(fd: int, data: bytes) -> None:
    with suppress(BrokenPipeError):
        write_all(fd, data)


TestHost = Host.TestCase
TestHost.settings = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None,
                             suppress_health_check=list(HealthCheck))
