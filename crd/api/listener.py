"""The socket file: made with the right owner and mode, and never taken from a daemon that lives."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from crd.errors import SettingsError, StateInUse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BACKLOG = 128
_LOCK_SECONDS, _LOOK_AGAIN_SECONDS = 2.0, 0.01


def listen(path: Path, *, public: bool, gid: int | None) -> socket.socket:
    """Make the socket file and listen on it.

    Args:
        path: of the file; missing directories are made, a socket that nobody listens on is replaced.
        public: whether everybody may connect (mode 0666).
        gid: group that may connect (mode 0660); None: only the owner may (0600).

    Raises:
        StateInUse: somebody listens there.
        SettingsError: the file cannot be made, or something else has this name.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _locked(path.parent):
            _remove_stale(path)
            os.fchmod(listener.fileno(), 0o600)  # what bind(2) makes has the mode of the socket, less the umask
            listener.bind(str(path))
            if gid is not None:
                os.chown(path, -1, gid, follow_symlinks=False)
            path.chmod(0o666 if public else 0o660 if gid is not None else 0o600)
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(f"the socket {path} cannot be made: {error.strerror or error}", path=str(path),
                            hint="Set api.socket (CRD_API__SOCKET) to a path where the daemon may.") from error
    except SettingsError:
        listener.close()
        raise
    return listener


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep two daemons that start at once from taking the same socket for stale."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd)
        yield
    finally:
        os.close(fd)


def _lock(directory: int) -> None:
    """Lock it, or do without: whoever may look into a directory can lock it, too, and keep it locked."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while time.monotonic() < deadline:
        with suppress(BlockingIOError):
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOOK_AGAIN_SECONDS)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SettingsError(f"{path} is there and is no socket", path=str(path),
                            hint="Move it away, or set api.socket (CRD_API__SOCKET) to another path.")
    if _is_alive(path):
        raise StateInUse(f"another daemon listens on {path}", path=str(path),
                         hint="Stop it first, or set api.socket (CRD_API__SOCKET) to another path.")
    path.unlink()


def _is_alive(path: Path) -> bool:
    """Tell whether anybody listens: only a refusal says that nobody does (a full backlog is EAGAIN)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED
