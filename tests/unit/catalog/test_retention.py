"""What retention and integrity ask of the catalog."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from crd.errors import ImageInUse, ImageNotFound
from crd.ids import Crid
from tests.unit.catalog.test_catalog import NOW, enter, image

if TYPE_CHECKING:
    from crd.catalog.catalog import Catalog


async def test_a_pinned_image_is_not_forgotten(catalog: Catalog) -> None:
    await enter(catalog, 1)
    assert (await catalog.images.pin(Crid(1), pinned=True)).pinned
    with pytest.raises(ImageInUse, match="pinned"):
        await catalog.images.forget(Crid(1))
    assert not (await catalog.images.pin(Crid(1), pinned=False)).pinned
    await catalog.images.forget(Crid(1))
    for verb in (catalog.images.pin(Crid(1), pinned=True), catalog.images.verified(Crid(1), NOW),
                 catalog.images.damaged(Crid(1), "x")):
        with pytest.raises(ImageNotFound):
            await verb


async def test_an_image_to_be_restarted_is_not_forgotten_and_a_forgotten_one_not_restarted(catalog: Catalog) -> None:
    await enter(catalog, 1)
    request = await catalog.requests.add(Crid(1), pids="original", files="keep", uid=0, now=NOW)
    for _ in ("queued", "running"):
        assert [choice.wanted for choice in await catalog.images.choices("web")] == [True]
        with pytest.raises(ImageInUse, match="restart"):
            await catalog.images.forget(Crid(1))
        await catalog.requests.claim(NOW)
    await catalog.requests.failed(request.number, NOW, ImageNotFound())
    assert [choice.wanted for choice in await catalog.images.choices("web")] == [False]
    await catalog.images.forget(Crid(1))
    with pytest.raises(ImageNotFound):
        await catalog.requests.add(Crid(1), pids="original", files="keep", uid=0, now=NOW)


async def test_rows_of_forgotten_images_go_unless_something_needs_them(catalog: Catalog) -> None:
    for crid in (1, 2, 3):
        await enter(catalog, crid)
    request = await catalog.requests.add(Crid(2), pids="original", files="keep", uid=0, now=NOW)
    await catalog.requests.cancel(request.number, NOW)
    for crid in (1, 2, 3):
        await catalog.images.forget(Crid(crid))
        await catalog.images.bury(Crid(crid))
    assert (await catalog.requests.get(request.number)).crid == 2
    assert await catalog.images.max_crid() == 3
    rows = await catalog._database.read(
        lambda connection: connection.exec_driver_sql("SELECT crid, state FROM images ORDER BY crid").all())
    assert rows == [(2, "forgotten"), (3, "forgotten")]


async def test_only_what_was_forgotten_is_buried(catalog: Catalog) -> None:
    await enter(catalog, 1)
    await catalog.images.begin(image(2))
    for crid in (1, 2):
        await catalog.images.bury(Crid(crid))
    assert (await catalog.images.get(Crid(1))).state == "ok"
    assert len(await catalog.images.storing()) == 1


async def test_damage_stays_until_it_is_put_right(catalog: Catalog) -> None:
    await enter(catalog, 1)
    damaged = await catalog.images.damaged(Crid(1), "frame 3")
    assert (damaged.state, damaged.damage) == ("damaged", "frame 3")
    assert [choice.damaged for choice in await catalog.images.choices("web")] == [True]
    assert [found.state for found in await catalog.images.list()] == ["damaged"]
    assert (await catalog.images.settle([], {})).missing == [1]
    well = await catalog.images.verified(Crid(1), NOW)
    assert (well.state, well.damage, well.verified_at) == ("ok", None, NOW)
    await catalog.images.damaged(Crid(1), "frame 3")
    await catalog.images.forget(Crid(1))


async def test_what_was_not_checked_for_longest_is_next(catalog: Catalog) -> None:
    for crid, days in ((1, 9), (2, 8), (3, 1)):
        await enter(catalog, crid, taken_at=NOW - timedelta(days=days))
    week = NOW - timedelta(days=7)
    found = await catalog.images.unchecked_since(week)
    assert found is not None
    assert found.crid == 1
    await catalog.images.verified(Crid(1), NOW)
    await catalog.images.damaged(Crid(2), "it is known")
    assert await catalog.images.unchecked_since(week) is None
