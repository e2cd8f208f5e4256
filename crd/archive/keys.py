"""Keys that images are encrypted with: 32 random bytes, each in a file or a systemd credential.

A key is known by its **fingerprint**, not by a name that somebody gave it: there is nothing to keep in step between
hosts, a renamed file is the same key, and another key under an old name is not mistaken for the old one.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from typing import TYPE_CHECKING

from blake3 import blake3

from crd.archive.secret_files import read_secret_file, secret_path
from crd.durable import flush_directory
from crd.errors import KeyMissing, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEY_BYTES = 32
ID_BYTES = 8
_FILE_BYTES_MAX = 256
_DISTINCT_BYTES_MIN = 16  # 32 random bytes have fewer once in 10^14 keys


class Key:
    """A master key, which is never shown: ``id`` names it."""

    def __init__(self, secret: bytes) -> None:
        """Take 32 random bytes."""
        self._secret = secret
        self.id = blake3(secret, derive_key_context="crd 2026 key id").digest(length=ID_BYTES).hex()

    def __repr__(self) -> str:
        return f"Key({self.id})"

    def derive(self, context: str, salt: bytes) -> bytes:
        """Return a key of 32 bytes for one purpose and one salt."""
        return blake3(self._secret + salt, derive_key_context=context).digest()


class KeyRing:
    """The keys of an archive by id; the first given is the current one."""

    def __init__(self, keys: Iterable[Key]) -> None:
        """Take at least one key; ``current`` seals what is new."""
        self._keys = {key.id: key for key in keys}
        self.current = next(iter(self._keys.values()))

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._keys

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self.ids)})"

    @property
    def ids(self) -> list[str]:
        """The ids, the current one first."""
        return list(self._keys)

    def get(self, key_id: str, what: str) -> Key:
        """Return a key.

        Raises:
            KeyMissing: it is not among the keys; ``what`` was sealed with it.
        """
        if key_id not in self._keys:
            raise KeyMissing(f"{what} is encrypted with key {key_id}, which is not among the keys of this daemon "
                             f"({', '.join(self.ids)})", key_id=key_id,
                             hint="Add the file of that key to encryption.keys; `crd key FILE` prints the id of one.")
        return self._keys[key_id]


def load_keys(sources: Iterable[str]) -> KeyRing | None:
    """Read keys, the current one first; None if there are no sources.

    Args:
        sources: each an absolute path, or the name of a systemd credential of this service.

    Raises:
        SettingsError: one cannot be read, may be read by others, or is no key.
    """
    keys = [load_key(secret_path(source, "encryption.keys")) for source in sources]
    return KeyRing(keys) if keys else None


def load_key(path: Path) -> Key:
    """Read a key: 32 bytes as they are, in hexadecimal or in base64.

    Raises:
        SettingsError: it cannot be read, may be read by others, or is no key.
    """
    secret = _decoded(read_secret_file(path, "key file", _FILE_BYTES_MAX,
                                       hint="Put it back: nothing else opens what it has sealed. Where nothing is, "
                                            "`crd key --new FILE` makes one."))
    if secret is None or len(set(secret)) < _DISTINCT_BYTES_MIN or (secret.isascii() and secret.decode().isprintable()):
        raise SettingsError(f"key file {path}: it does not hold 32 random bytes, as they are, in hexadecimal or in "
                            "base64", path=str(path), hint="`crd key --new FILE` makes a key; a passphrase is none.")
    return Key(secret)


def make_key(path: Path) -> Key:
    """Make a key, durably, in a file that must not be there yet.

    Raises:
        SettingsError: the file is there, or cannot be made.
    """
    secret = secrets.token_bytes(KEY_BYTES)
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
            try:
                file.write(secret.hex().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                flush_directory(path.parent)
            except OSError:
                path.unlink()
                raise
    except OSError as error:
        raise SettingsError(f"key file {path}: {error.strerror}", path=str(path),
                            hint="Name a file that does not exist, in a directory that does.") from error
    return Key(secret)


def _decoded(content: bytes) -> bytes | None:
    if len(content) == KEY_BYTES:
        return content
    text = content.strip()
    try:
        if len(text) == 2 * KEY_BYTES:
            return binascii.unhexlify(text)
        secret = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return secret if len(secret) == KEY_BYTES else None
