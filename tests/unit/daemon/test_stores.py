"""The store that the settings name, opened."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from crd.archive.stores.spooled import SpooledStore
from crd.daemon.stores import open_store
from crd.errors import ArchiveInUse, SettingsError
from crd.settings.models import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.seaweed import SeaweedServer


def settings(home: Path, seaweed: SeaweedServer, **s3: object) -> Settings:
    location = seaweed.location("opened", home.name)
    (home / "state").mkdir(exist_ok=True, mode=0o700)
    return Settings(daemon={"state_dir": home / "state"}, archive={"store": "s3"}, s3={
        "bucket": location.bucket, "prefix": location.prefix, "endpoint": location.endpoint, "region": "us-east-1",
        "credentials": str(location.credentials), "writer": "host", **s3})


def test_who_has_a_local_archive_does_not_pay_for_s3() -> None:
    program = "import crd.daemon.app, sys; assert 'obstore' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_a_spool_before_s3_and_none(tmp_path: Path, seaweed: SeaweedServer) -> None:
    async with open_store(settings(tmp_path, seaweed)) as opened:
        assert isinstance(opened.store, SpooledStore)
        assert opened.store is opened.spool
        assert opened.store.describe() == f"s3://opened/{tmp_path.name}/host/objects"
    async with open_store(settings(tmp_path, seaweed, spool_size=0)) as opened:
        assert opened.spool is None
        await (await opened.store.create("a")).commit()
    async with open_store(settings(tmp_path, seaweed)) as opened:
        assert list(await opened.store.objects()) == ["a"]


async def test_credentials_of_systemd(tmp_path: Path, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    named = settings(tmp_path, seaweed, credentials="crd-s3")
    with pytest.raises(SettingsError, match=r"s3\.credentials"):
        async with open_store(named):
            pass
    (tmp_path / "crd-s3").symlink_to(seaweed.credentials)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    async with open_store(named) as opened:
        assert await opened.store.objects() == {}


async def test_credentials_of_the_environment(tmp_path: Path, seaweed: SeaweedServer,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    for line in seaweed.credentials.read_text().splitlines()[1:]:
        name, _, value = line.partition(" = ")
        monkeypatch.setenv(name.upper(), value)
    async with open_store(settings(tmp_path, seaweed, credentials="")) as opened:
        assert await opened.store.objects() == {}


async def test_what_waits_in_a_spool_goes_nowhere_else(tmp_path: Path, seaweed: SeaweedServer) -> None:
    async with open_store(settings(tmp_path, seaweed)) as opened:
        await (await opened.store.create("a")).commit()
    with pytest.raises(ArchiveInUse, match=r"1 objects that belong into s3://opened/.*/host/objects, not") as refused:
        async with open_store(settings(tmp_path, seaweed, writer="another")):
            pass
    assert "s3.spool_path" in refused.value.hint
    async with open_store(settings(tmp_path, seaweed)) as opened:
        await opened.store.delete("a")
    async with open_store(settings(tmp_path, seaweed, writer="another")) as opened:
        assert await opened.store.objects() == {}
