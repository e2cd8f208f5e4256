"""Rules applied to a catalog and an archive; faults, readers, and crashes anywhere between."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crd.archive.archive import Archive
from crd.archive.names import image_key
from crd.archive.stores.memory import MemoryStore
from crd.catalog.catalog import Catalog
from crd.daemon.meter import Meter
from crd.daemon.readers import Readers
from crd.daemon.retention import READ, WANTED, Retention
from crd.daemon.schedule import Schedule
from crd.daemon.scheduler import ScheduledTarget
from crd.daemon.scrub import Scrub, Scrubbed
from crd.errors import ArchiveUnavailable, BlobCorrupt, ImageInUse, ImageNotFound
from crd.ids import Crid
from crd.metrics.names import Metrics
from crd.settings.models import RetentionSettings, TargetSettings
from tests.unit.archive.test_archive import content, store_image
from tests.unit.catalog.test_catalog import NOW, image
from tests.unit.daemon.test_scheduler import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from crd.catalog.rows import Image


class FailingStore(MemoryStore):
    """Cannot remove what is in ``stuck``."""

    stuck: frozenset[str] = frozenset()

    async def delete(self, key: str) -> None:
        if key in self.stuck:
            raise ArchiveUnavailable("the disk failed")
        await super().delete(key)


class Place:
    """A catalog, an archive, and retention over both."""

    def __init__(self, catalog: Catalog, store: FailingStore) -> None:
        self.catalog = catalog
        self.store = store
        self.archive = Archive(store)
        self.clock = FakeClock()
        self.readers = Readers()
        self.settings = RetentionSettings()
        self.targets: dict[str, ScheduledTarget] = {}
        self.meter = Meter(self.archive, None, Metrics())
        self.retention = Retention(catalog, self.archive, self.clock, self.readers, self.meter, lambda: self.settings,
                                   self.targets)

    def target(self, name: str, keep: str | None) -> None:
        definition = TargetSettings(pid=1, every="1d", keep=keep)
        schedule = Schedule.of(name, definition, NOW)
        self.targets[name] = ScheduledTarget(name, definition, schedule, "settings", held=True)

    async def store_images(self, count: int, target: str | None = "web") -> None:
        first = await self.catalog.images.max_crid() + 1
        for crid in range(first, first + count):
            stored = await store_image(self.archive, crid, content(1000 + crid))
            await self.catalog.images.begin(image(crid, target=target, digest=stored.digest,
                                                  taken_at=NOW - timedelta(hours=1000 - crid)))
            await self.catalog.images.finish(Crid(crid), stored.stored_bytes)

    async def crids(self) -> list[int]:
        listed = sorted(found.crid for found in await self.catalog.images.list())
        assert await self.archive.crids() == listed
        return listed


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with await Catalog.open(f"sqlite:///{tmp_path}/catalog.db", "here") as catalog:
        yield Place(catalog, FailingStore())


async def test_each_target_by_its_own_rules_and_others_not_at_all(place: Place) -> None:
    place.settings = RetentionSettings(keep="last=1")
    for name, keep in (("web", None), ("db", "last=2"), ("all", "")):
        place.target(name, keep)
        await place.store_images(3, name)
    await place.store_images(2, None)
    await place.store_images(2, "removed")
    await place.retention.apply_all()
    assert await place.crids() == [3, 5, 6, 7, 8, 9, 10, 11, 12, 13]


async def test_a_target_that_went_meanwhile_keeps_its_images(place: Place) -> None:
    place.target("web", "last=1")
    await place.store_images(3)
    place.targets.clear()
    assert await place.retention.apply("web") == []
    assert await place.crids() == [1, 2, 3]


async def test_images_in_use_are_kept_and_it_is_said_why(place: Place) -> None:
    place.target("web", "last=1")
    await place.store_images(4)
    await place.catalog.requests.add(Crid(2), pids="new", files="keep", uid=0, now=NOW)
    with place.readers.reading(Crid(1)):
        verdicts = {verdict.crid: verdict for verdict in await place.retention.apply("web")}
        with pytest.raises(ImageInUse, match="being read"):
            await place.retention.forget(Crid(1))
    assert {crid: (verdict.keep, verdict.reasons) for crid, verdict in verdicts.items()} == {
        4: (True, ("last 1 of 1",)), 3: (False, ("no rule wants it",)), 2: (True, (WANTED,)), 1: (True, (READ,))}
    assert await place.crids() == [1, 2, 4]
    await place.retention.apply("web")
    assert await place.crids() == [2, 4]


async def test_what_is_forgotten_is_counted_no_more(place: Place) -> None:
    await place.store_images(3)
    before = await place.meter.current()
    await place.retention.forget(Crid(1))
    assert (place.meter.size.images, place.meter.size.stored_bytes) == (2, before.stored_bytes), "as measured last"
    after = await place.meter.current()
    assert (after, after.images) == (await place.archive.size(), 2)
    assert after.stored_bytes < before.stored_bytes


async def test_a_reader_that_comes_first_reads_to_its_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.store_images(1)
    forget = place.catalog.images.forget
    with contextlib.ExitStack() as readers:

        async def forget_when_it_is_there(crid: Crid) -> None:
            readers.enter_context(place.readers.reading(crid))  # it was not when it was looked for
            await forget(crid)

        monkeypatch.setattr(place.catalog.images, "forget", forget_when_it_is_there)
        forgetting = asyncio.create_task(place.retention.forget(Crid(1)))
        while await place.catalog.images.list():
            pass
        for _ in range(20):
            await asyncio.sleep(0)
        assert not forgetting.done()
        assert await place.archive.crids() == [1]
    await forgetting
    assert await place.crids() == []


async def test_an_object_that_cannot_be_removed_stops_no_other(place: Place) -> None:
    place.target("web", "last=1")
    await place.store_images(4)
    place.store.stuck = frozenset({f"{2:016x}.image"})
    verdicts = {verdict.crid: verdict.error for verdict in await place.retention.apply("web")}
    assert verdicts == {1: None, 2: "the disk failed", 3: None, 4: None}
    assert [found.crid for found in await place.catalog.images.list()] == [4]
    assert await place.archive.crids() == [2, 4]
    settled = await place.catalog.images.settle(await place.archive.crids(), {})
    assert settled.surplus == [2], "the next start removes it"
    with pytest.raises(ArchiveUnavailable):
        await place.retention.sweep()
    place.store.stuck = frozenset()
    before = await place.archive.size()
    swept, nothing = await asyncio.gather(place.retention.sweep(), place.retention.sweep())
    after = await place.archive.size()
    assert swept == (1, 0, before.stored_bytes - after.stored_bytes, 0, "")
    assert nothing == (0, 0, 0, 0, "")
    assert swept.bytes > 0
    assert await place.archive.crids() == [4]
    assert await place.catalog.images.forgotten() == []


async def test_a_sweep_lists_the_store_only_if_it_may_find_something(
        place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.store_images(2)
    monkeypatch.setattr(place.store, "objects", None)
    assert await place.retention.sweep() == (0, 0, 0, 0, "")
    await place.catalog.images.forget(Crid(1))
    with pytest.raises(TypeError):
        await place.retention.sweep()


async def test_a_sweep_leaves_what_is_read_to_who_forgets_it(place: Place) -> None:
    await place.store_images(2)
    with place.readers.reading(Crid(1)):
        await place.catalog.images.forget(Crid(1))
        assert (await place.retention.sweep()).images == 0
        assert await place.archive.crids() == [1, 2]
    assert (await place.retention.sweep()).images == 1
    assert await place.archive.crids() == [2]


async def test_what_is_not_there_cannot_be_forgotten(place: Place) -> None:
    with pytest.raises(ImageNotFound):
        await place.retention.forget(Crid(7))


STEPS = st.lists(st.one_of(
    st.tuples(st.just("store"), st.integers(1, 3)), st.tuples(st.just("keep"), st.integers(1, 4)),
    st.tuples(st.just("apply"), st.integers(0, 6)), st.tuples(st.just("pin"), st.integers(1, 9)),
    st.tuples(st.just("damage"), st.integers(1, 9)), st.tuples(st.just("restart"), st.just(0))), max_size=14)


class CrashError(BaseException):
    """As if the daemon had been killed."""


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
async def test_nothing_pinned_good_and_last_or_acknowledged_is_ever_lost(
        steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Catalog and archive agree after every crash; ``apply`` crashes after that many changes."""
    home = tmp_path_factory.mktemp("retention")
    async with await Catalog.open(f"sqlite:///{home}/catalog.db", "here") as catalog:
        place = Place(catalog, FailingStore())
        place.target("web", "last=2")
        pinned: set[int] = set()
        damaged: set[int] = set()
        for verb, number in [*steps, ("restart", 0)]:
            there = {found.crid for found in await catalog.images.list()}
            if verb == "store":
                await place.store_images(number)
            elif verb == "keep":
                place.target("web", f"last={number}")
            elif verb in {"pin", "damage"} and number in there:
                await (catalog.images.pin(Crid(number), pinned=True) if verb == "pin" else
                       catalog.images.damaged(Crid(number), "drawn"))
                (pinned if verb == "pin" else damaged).add(number)
            elif verb == "apply":
                await crash_in_apply(place, number)
            elif verb == "restart":
                for crid in (await catalog.images.settle(await place.archive.crids(), {})).surplus:
                    await place.archive.forget(crid)
                    await catalog.images.bury(crid)
                await place.crids()
            after = {found.crid for found in await catalog.images.list()}
            assert after <= set(await place.archive.crids()), "no image without its object"
            assert (pinned | damaged) <= after
            if good := there - damaged:
                assert max(good) in after, "never the last good one"


async def crash_in_apply(place: Place, after: int) -> None:
    """Apply the rules, and die at the given change of the archive or the catalog."""
    left = after

    def dying(verb):
        async def step(*arguments):
            nonlocal left
            if not left:
                raise CrashError
            left -= 1
            return await verb(*arguments)

        return step

    images, archive = place.catalog.images, place.archive
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((images, "forget"), (images, "bury"), (archive, "forget")):
            patch.setattr(owner, name, dying(getattr(owner, name)), raising=True)
        with contextlib.suppress(CrashError):
            await place.retention.apply("web")


async def test_requests_that_ended_long_ago_are_dropped_and_what_was_kept_for_them(place: Place) -> None:
    place.clock.at = NOW
    await place.store_images(3)
    await place.catalog.requests.add(Crid(1), pids="new", files="keep", uid=0, now=NOW)
    await place.catalog.requests.cancel(1, NOW)
    place.store.stuck = frozenset({image_key(1)})
    with pytest.raises(ArchiveUnavailable):
        await place.retention.forget(Crid(1))
    place.store.stuck = frozenset()
    place.settings = RetentionSettings(requests_for="0s")
    place.clock.at += timedelta(days=29)
    await place.retention.sweep()
    place.settings = RetentionSettings()
    await place.retention.sweep()
    assert len(await place.catalog.requests.list()) == 1
    place.clock.at += timedelta(days=2)
    await place.retention.sweep()
    assert await place.catalog.requests.list() == []
    assert await place.crids() == [2, 3], "what could not be removed then is now"


class Checker:
    """Stands in for the pipeline: knows which images are damaged."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.damaged: set[int] = set()
        self.unreadable: set[int] = set()
        self.checked: list[int] = []

    async def verify(self, found: Image) -> SimpleNamespace:
        self.checked.append(found.crid)
        if found.crid in self.unreadable:
            raise ArchiveUnavailable("a sector is bad")
        if found.crid in self.damaged:
            await self.catalog.images.damaged(found.crid, "drawn")
            raise BlobCorrupt("drawn")
        return SimpleNamespace(checked_bytes=found.stored_bytes)


async def test_a_scrub_checks_each_image_once_in_its_time(place: Place) -> None:
    await place.store_images(3)
    checker, metrics = Checker(place.catalog), Metrics()
    checker.damaged = {2}
    scrub = Scrub(checker, metrics, place.clock, place.readers, lambda: place.settings)  # type: ignore[arg-type]
    place.clock.at = datetime(2026, 11, 23, 12, tzinfo=UTC)
    place.settings = RetentionSettings(scrub_every="0s")
    assert not await scrub._next()
    place.settings = RetentionSettings(scrub_every="7d", scrub_rate="1GiB")
    for _ in range(3):
        assert await scrub._next()
    assert not await scrub._next()
    assert sorted(checker.checked) == [1, 2, 3]
    assert [found.crid for found in await place.catalog.images.list() if found.state == "damaged"] == [2]
    place.clock.at += timedelta(days=8)
    while await scrub._next():
        pass
    assert sorted(checker.checked) == [1, 1, 2, 3, 3], "what is damaged is not read again and again"
    told: list[int] = []

    async def tell(so_far: Scrubbed) -> None:
        told.append(so_far.checked)

    scrubbed = await scrub.all(tell)
    assert (scrubbed.images, scrubbed.checked, scrubbed.damaged, told) == (3, 3, [2], [1, 2, 3])
    assert scrubbed.bytes == (await place.archive.size()).stored_bytes
    assert metrics.registry.get_sample_value("crd_scrub_errors_total") == 2


async def test_an_image_that_cannot_be_read_holds_up_no_other(place: Place) -> None:
    await place.store_images(4)
    checker = Checker(place.catalog)
    checker.unreadable = {1, 3}
    scrub = Scrub(checker, Metrics(), place.clock, place.readers, lambda: place.settings)  # type: ignore[arg-type]
    place.clock.at = NOW + timedelta(days=8)
    for is_unreadable in (True, False, True, False):
        if is_unreadable:
            with pytest.raises(ArchiveUnavailable):
                await scrub._next()
        else:
            assert await scrub._next()
    assert sorted(checker.checked) == [1, 2, 3, 4]
    assert not await scrub._next()
    with pytest.raises(ArchiveUnavailable):
        await scrub._next()
    assert checker.checked[-1] == 1, "it has another try"
    told: list[int] = []

    async def tell(so_far: Scrubbed) -> None:
        told.append(so_far.checked)

    with pytest.raises(ArchiveUnavailable):
        await scrub.all(tell)
    assert told == [1, 1, 2, 2]
    checker.unreadable = {2, 3, 4}
    with pytest.raises(ArchiveUnavailable):
        await scrub.all(tell)
    assert told == [1, 1, 2, 2, 0, 0], "the store is away"
