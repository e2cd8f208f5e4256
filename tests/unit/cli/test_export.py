"""What crctl makes of the bytes of an image that a daemon gives."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crd.api.channel import PeerLost
from tests.support.api import serving
from tests.support.builders import PID, make_image
from tests.support.linux_cr import GenC
from tests.unit.cli.conftest import IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.cli.conftest import Crctl


class Archive:
    """Gives one image, or only its beginning."""

    def __init__(self) -> None:
        self.image = make_image()
        self.gives_bytes: int | None = None

    async def __call__(self, _method: str, _parameters: dict[str, Any], _peer: object, channel: Any) -> dict[str, Any]:
        told = {"image": {**IMAGE, "image_bytes": len(self.image)}}
        await channel.begin(told)
        await channel.write(self.image[:self.gives_bytes])
        if self.gives_bytes is not None:
            raise PeerLost("damaged")
        return told


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    home = Path(tempfile.mkdtemp(prefix="crd-cli-"))
    monkeypatch.setenv("CRD_API__SOCKET", str(home / "crd.sock"))
    given = Archive()
    with serving(home / "crd.sock", given):
        yield given
    shutil.rmtree(home)


def test_an_image_is_written_as_it_comes(archive: Archive, crctl_: Crctl, tmp_path: Path) -> None:
    assert not crctl_("export", "42", "-o", str(tmp_path / "image"))
    assert (tmp_path / "image").read_bytes() == archive.image
    assert crctl_.json("export", "42", "-o", str(tmp_path / "image"))["crid"] == 42


def test_a_core_is_made_of_it(archive: Archive, crctl_: Crctl, tmp_path: Path) -> None:
    archive.image += b"behind the tail"
    assert not crctl_("export", "42", "-o", str(tmp_path / "core"), "--format", "core")
    assert (tmp_path / "core").read_bytes().startswith(b"\x7fELF")
    assert f"pid {PID} (worker), 2 threads" in crctl_.err
    told = crctl_.json("export", "42", "-o", str(tmp_path / "core"), "--format", "core", "--task", str(PID))
    assert told["crid"] == 42
    assert told["core"]["core_bytes"] == (tmp_path / "core").stat().st_size


@pytest.mark.parametrize("kind", ["image", "core"])
def test_what_is_cut_short_leaves_nothing(archive: Archive, crctl_: Crctl, tmp_path: Path, kind: str) -> None:
    (tmp_path / "old").write_text("old")
    for gives in (0, 100, len(archive.image) - 1):
        archive.gives_bytes = gives
        error = crctl_.error("export", "42", "-o", str(tmp_path / "old"), "--format", kind, status=10)
        assert f"cut the image short, {len(archive.image) - gives} bytes before its end" in error["message"]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_no_core_of_other_images(archive: Archive, crctl_: Crctl, tmp_path: Path) -> None:
    where = ("-o", str(tmp_path / "core"), "--format", "core")
    assert "has no task 1" in crctl_.error("export", "42", *where, "--task", "1", status=11)["message"]
    archive.image = archive.image[:-20] + bytes(20)
    assert crctl_.error("export", "42", *where, status=1)["error"] == "image.corrupt"
    archive.image = GenC().image()
    assert crctl_.error("export", "42", *where, status=13)["error"] == "image.version-unsupported"
    assert crctl_.error("export", "42", "-o", str(tmp_path / "core"), "--task", "1", status=2)["hint"]
    assert not list(tmp_path.iterdir())
