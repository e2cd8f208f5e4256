"""Files that hold secrets: absolute paths, or credentials that systemd hands over; nobody else may use them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from crd.errors import SettingsError

_CREDENTIALS = "CREDENTIALS_DIRECTORY"


def secret_path(source: str, setting: str) -> Path:
    """Return the path of a secret.

    Args:
        source: an absolute path, or the name of a systemd credential of this service.
        setting: that names it.

    Raises:
        SettingsError: it is neither.
    """
    if source.startswith("/"):
        return Path(source)
    directory = os.environ.get(_CREDENTIALS)
    if "/" in source or source in {"", ".", ".."}:
        raise SettingsError(f"{setting}: {source!r} is neither an absolute path nor the name of a credential",
                            hint="Write the path from the root, or a name of LoadCredential=.")
    if not directory:
        raise SettingsError(f"{setting}: there is no credential {source}: systemd passed none to this process",
                            hint=f"Write an absolute path, or LoadCredential={source}:FILE into the unit.")
    return Path(directory) / source


def read_secret_file(path: Path, what: str, bytes_max: int, *, hint: str = "") -> bytes:
    """Read up to so many bytes of a secret file.

    Args:
        path: of it.
        what: it is, for messages.
        bytes_max: what is behind them is not read.
        hint: what to do if it is not there.

    Raises:
        SettingsError: it cannot be read, or may be read by others.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(fd, "rb") as file:
            _check_private(path, os.fstat(fd), what)
            return file.read(bytes_max)
    except OSError as error:
        raise SettingsError(f"{what} {path}: {error.strerror}", path=str(path), hint=hint) from error


def _check_private(path: Path, found: os.stat_result, what: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise SettingsError(f"{what} {path}: it is no file", path=str(path))
    if found.st_uid not in {0, os.geteuid()}:
        raise SettingsError(f"{what} {path}: it belongs to user {found.st_uid}", path=str(path),
                            hint=f"chown {os.geteuid()} {path}")
    if found.st_mode & 0o077:
        raise SettingsError(f"{what} {path}: its mode is {found.st_mode & 0o777:04o}, others may use it",
                            path=str(path), hint=f"chmod 0600 {path}, and consider what it holds known.")
