"""A catalog in a database of its own, of each kind."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from crd.catalog.catalog import Catalog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture
async def sqlite_catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with await Catalog.open(f"sqlite:///{tmp_path}/catalog.db", "here") as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.db"
    url: str = request.getfixturevalue("database_url")
    return url


@pytest.fixture
async def catalog(catalog_url: str) -> AsyncIterator[Catalog]:
    async with await Catalog.open(catalog_url, "here") as opened:
        yield opened
