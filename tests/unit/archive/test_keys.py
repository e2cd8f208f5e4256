"""Keys: what is one, where it may lie, and that it is never shown."""

from __future__ import annotations

import base64
import errno
import os
import random
from pathlib import Path

import pytest

from crd.archive import keys
from crd.archive.keys import Key, KeyRing, load_key, load_keys, make_key
from crd.errors import SettingsError

SECRET = random.Random(5).randbytes(32)


def written(path: Path, content: bytes = SECRET, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [
    SECRET, SECRET.hex().encode(), SECRET.hex().upper().encode() + b"\n", base64.b64encode(SECRET),
    b" " + base64.b64encode(SECRET) + b"\r\n"])
def test_a_key_is_raw_hexadecimal_or_base64(tmp_path: Path, content: bytes) -> None:
    assert load_key(written(tmp_path / "key", content)).id == Key(SECRET).id


@pytest.mark.parametrize("content", [
    b"", b"\0" * 32, b"0" * 64, SECRET[:31], SECRET + b"\n", b"correct horse battery staple 123", b"\xff" * 64,
    SECRET.hex().encode() * 2, b"!" * 44, b"x" * 10_000, base64.b64encode(SECRET[:30])])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SettingsError, match="32 random bytes") as refused:
        load_key(written(tmp_path / "key", content))
    assert "--new" in refused.value.hint


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SettingsError, match=f"{mode:04o}") as refused:
        load_key(written(tmp_path / "key", mode=mode))
    assert "chmod 0600" in refused.value.hint


@pytest.mark.root
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(written(tmp_path / "key"), 12345, -1)
    with pytest.raises(SettingsError, match="user 12345"):
        load_key(tmp_path / "key")


def test_a_key_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name in ("fifo", "missing", "."):
        with pytest.raises(SettingsError, match="key file"):
            load_key(tmp_path / name)


def test_keys_by_path_and_by_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = written(tmp_path / "crd-old", random.Random(6).randbytes(32), 0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    ring = load_keys([str(written(tmp_path / "key")), "crd-old", str(tmp_path / "key")])
    assert ring is not None
    assert ring.ids == [Key(SECRET).id, load_key(old).id]
    assert ring.current.id == Key(SECRET).id
    assert load_keys([]) is None


@pytest.mark.parametrize(("source", "says"), [("../key", "absolute"), ("", "absolute"), ("..", "absolute"),
                                              ("crd-key", "systemd passed none")])
def test_a_source_that_is_nothing(source: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(SettingsError, match=says):
        load_keys([source])


def test_a_new_key_is_private_and_never_replaces_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path).id == key.id
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="exists"):
        make_key(path)
    assert path.read_bytes() == before
    with pytest.raises(SettingsError, match="No such"):
        make_key(tmp_path / "missing" / "key")


def test_a_key_that_did_not_reach_the_disk_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(keys.os, "fsync", fail)
    with pytest.raises(SettingsError, match="No space"):
        make_key(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_never_shown() -> None:
    key = Key(SECRET)
    for text in (repr(key), str(key), repr(KeyRing([key])), f"{KeyRing([key])}"):
        assert key.id in text
        assert SECRET.hex() not in text
        assert repr(SECRET)[2:-1] not in text
    assert key.id not in SECRET.hex()


def test_keys_for_different_salts_and_purposes_differ() -> None:
    key = Key(SECRET)
    derived = {key.derive(context, salt) for context in ("a", "b") for salt in (b"1" * 16, b"2" * 16)}
    assert len(derived) == 4
    assert all(len(secret) == 32 for secret in derived)
