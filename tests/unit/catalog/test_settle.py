"""Catalog and archive after a crash at any point of a checkpoint: nothing lost, nothing half taken for whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crd.catalog.catalog import Catalog
from crd.errors import ImageNotFound
from crd.ids import Crid
from tests.unit.catalog.test_catalog import enter, image

if TYPE_CHECKING:
    from pathlib import Path


async def test_each_state_is_settled(catalog: Catalog) -> None:
    for crid in (1, 2, 3):
        await enter(catalog, crid)
    await catalog.images.forget(Crid(2))
    await catalog.images.begin(image(4))
    await catalog.images.begin(image(5))
    await catalog.images.begin(image(6))
    settled = await catalog.images.settle([Crid(crid) for crid in (1, 2, 4, 6, 99)], {Crid(4): 400})
    assert (settled.kept, settled.dropped) == ([4], [5, 6])
    assert (settled.surplus, settled.missing) == ([2], [3])
    assert settled.unknown == [6, 99], "what may be all that is left of an image is not removed"
    assert (await catalog.images.get(Crid(4))).stored_bytes == 400
    assert [found.crid for found in await catalog.images.list()] == [4, 3, 1]
    assert await catalog.images.storing() == []


async def test_a_forgotten_image_is_not_found_and_its_crid_is_never_given_again(catalog: Catalog) -> None:
    await enter(catalog, 7)
    await catalog.images.forget(Crid(7))
    for verb in (catalog.images.get, catalog.images.forget):
        with pytest.raises(ImageNotFound):
            await verb(Crid(7))
    assert await catalog.images.list() == []
    assert await catalog.images.max_crid() == 7


STEPS = 7


async def go(catalog: Catalog, objects: dict[Crid, int], crid: Crid, steps: int) -> tuple[bool, bool]:
    """Take an image and forget it, that many steps far; return whether it was acknowledged, and forgotten."""
    if steps > 0:
        await catalog.images.begin(image(crid))
    if steps > 1:
        objects[crid] = 10 * crid
    if steps > 2:
        await catalog.images.finish(crid, objects[crid])
    if steps > 4:
        await catalog.images.forget(crid)
    if steps > 5:
        del objects[crid]
    if steps > 6:
        await catalog.images.bury(crid)
    return steps > 3, steps > 4


@settings(max_examples=30, deadline=None)
@given(reached=st.lists(st.integers(0, STEPS), min_size=1, max_size=8))
async def test_a_crash_after_any_step(reached: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each image gets as far as drawn; then everything crashes, and is settled twice."""
    home: Path = tmp_path_factory.mktemp("settle")
    objects: dict[Crid, int] = {}
    async with await Catalog.open(f"sqlite:///{home}/catalog.db", "here") as catalog:
        ends = {crid: await go(catalog, objects, Crid(crid), steps) for crid, steps in enumerate(reached, 1)}
    acknowledged = {crid for crid, end in ends.items() if end[0]}
    forgotten = {crid for crid, end in ends.items() if end[1]}
    for _ in range(2):
        async with await Catalog.open(f"sqlite:///{home}/catalog.db", "here") as catalog:
            whole = {found.crid: objects[found.crid] for found in await catalog.images.storing()
                     if found.crid in objects}
            settled = await catalog.images.settle(objects, whole)
            for crid in settled.surplus:
                del objects[crid]
            assert settled.unknown == settled.missing == []
            listed = {found.crid: found.stored_bytes for found in await catalog.images.list()}
            assert listed == objects, "every image has its object, every object its image"
            assert acknowledged - forgotten <= set(listed)
            assert not forgotten & set(listed)
