"""What people say about images: tags and notes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from crd.errors import BadRequest, ImageNotFound, TagNotFound
from crd.ids import Crid
from tests.unit.catalog.test_catalog import NOW, enter

if TYPE_CHECKING:
    from crd.catalog.catalog import Catalog


async def test_tags_are_given_and_taken_away(catalog: Catalog) -> None:
    await enter(catalog, 1, tags=["night"])
    await enter(catalog, 2)
    images = catalog.images
    assert (await images.tag(Crid(1), ["good", "night", "good"], [])).tags == ["night", "good"]
    assert (await images.tag(Crid(1), ["better"], ["good"])).tags == ["night", "better"]
    assert (await images.tag(Crid(1), ["night"], ["night"])).tags == ["better", "night"], "taken away, then given"
    assert (await images.get(Crid(1))).tags == ["better", "night"]
    assert (await images.get(Crid(2))).tags == []


async def test_what_cannot_be_done_to_tags_changes_nothing(catalog: Catalog) -> None:
    await enter(catalog, 1, tags=["night"])
    images = catalog.images
    with pytest.raises(TagNotFound, match="no tag 'day'"):
        await images.tag(Crid(1), ["good"], ["night", "day"])
    with pytest.raises(TagNotFound):
        await images.tag(Crid(1), [], [""])
    with pytest.raises(BadRequest, match="17 tags"):
        await images.tag(Crid(1), [str(number) for number in range(16)], [])
    with pytest.raises(ImageNotFound):
        await images.tag(Crid(2), ["good"], [])
    assert (await images.get(Crid(1))).tags == ["night"]
    assert len((await images.tag(Crid(1), [str(number) for number in range(16)], ["night"])).tags) == 16


async def test_tags_that_are_given_at_once_are_all_there(catalog: Catalog) -> None:
    await enter(catalog, 1)
    await asyncio.gather(*(catalog.images.tag(Crid(1), [str(number)], []) for number in range(12)))
    assert sorted((await catalog.images.get(Crid(1))).tags, key=int) == [str(number) for number in range(12)]


async def test_images_are_listed_by_a_tag_as_it_is(catalog: Catalog) -> None:
    tags = {1: ["night", 'a"b'], 2: ["Night"], 3: [], 4: ["nacht über 日本", "night"], 5: ["nightly", ", "]}
    for crid, given in tags.items():
        await enter(catalog, crid, tags=given, uid=crid % 2, taken_at=NOW + timedelta(minutes=crid))

    async def found(tag: str, **also: int) -> list[int]:
        return [image.crid for image in await catalog.images.list(tag=tag, **also)]  # type: ignore[arg-type]

    assert await found("night") == [4, 1]
    assert await found("night", uid=1) == [1]
    assert await found("night", limit=1) == [4]
    assert await found("nacht über 日本") == [4]
    assert await found('a"b') == [1]
    assert await found(", ") == [5]
    for nobodys in ("", "%", "nigh_", '", "', "null", "[]"):
        assert await found(nobodys) == [], nobodys


async def test_a_note_stays_until_it_is_replaced(catalog: Catalog) -> None:
    assert (await enter(catalog, 1)).note is None
    await enter(catalog, 2)
    images = catalog.images
    assert (await images.note(Crid(1), "before the upgrade")).note == "before the upgrade"
    assert (await images.note(Crid(1), "über 日本")).note == "über 日本"
    assert [image.note for image in await images.list()] == [None, "über 日本"]
    assert (await images.note(Crid(1), None)).note is None
    await images.forget(Crid(2))
    with pytest.raises(ImageNotFound):
        await images.note(Crid(2), "too late")
