"""The client's end of the socket: one call at a time, without asyncio."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crd.api.protocol import FAILED, INTERFACE, SERVICE, Call, MessageBuffer, Reply, decode_reply, encode
from crd.errors import AccessDenied, ApiError, BadRequest, CrdError, DaemonUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

DEFAULT_SOCKET = Path("/run/crd/crd.sock")
SOCKET_VARIABLE = "CRD_API__SOCKET"

_REPLY_BYTES_MAX = 1 << 28
_READ_BYTES = 1 << 18
_PATIENCE_SECONDS = 60.0
_UNHEARD_SECONDS = 2.0
_SIGN_SECONDS = 1.0


def default_socket() -> Path:
    """Return where the daemon is expected: ``CRD_API__SOCKET``, or the usual path."""
    return Path(os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)


class Client:
    """A connection to the daemon."""

    def __init__(self, path: Path | None = None, unheard: Callable[[Path], object] | None = None) -> None:
        """Connect.

        Args:
            path: of the socket; None: where the daemon is expected.
            unheard: told once that no answer has come for a while, and that the daemon does not answer others either:
                systemd holds the socket, so whoever connects waits for a daemon that starts, or that cannot.

        Raises:
            DaemonUnavailable: nobody listens there.
            AccessDenied: this user may not connect.
        """
        self._path = path or default_socket()
        self._unheard = unheard
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = MessageBuffer(_REPLY_BYTES_MAX)
        self._arrived: list[bytearray] = []
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_PATIENCE_SECONDS))
            self._socket.connect(str(self._path))  # blocking: others get EAGAIN while the daemon's backlog is full
        except OSError as error:
            self._socket.close()
            raise _no_connection(self._path, error) from error

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of ``io.crd`` and return its result.

        Raises:
            CrdError: whatever the daemon says is wrong, as the exception it was there.
            DaemonUnavailable: it hung up, or does not answer for a minute.
        """
        self._socket.settimeout(_PATIENCE_SECONDS)
        self._send(Call(f"{INTERFACE}.{method}", parameters))
        return _result(self._receive())

    def stream(self, method: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Call a method with ``more`` and yield its results as they come, however long that takes.

        Raises:
            CrdError: as ``call``.
        """
        self._socket.settimeout(None)
        self._send(Call(f"{INTERFACE}.{method}", parameters, more=True))
        continues = True
        while continues:
            reply = self._receive()
            continues = reply.continues
            yield _result(reply)

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self._socket.fileno()

    def move(self, lowest: int) -> None:
        """Have the connection under a descriptor that is not below ``lowest``."""
        moved = socket.socket(fileno=fcntl.fcntl(self._socket, fcntl.F_DUPFD_CLOEXEC, lowest))
        self._socket.close()
        self._socket = moved

    def forget(self) -> None:
        """Do not hang up: the descriptor is not ours any more."""
        self._socket.detach()

    def upgrade(self, method: str, **parameters: Any) -> tuple[dict[str, Any], socket.socket]:
        """Call a method after which the connection carries bytes; return its first result, and the connection.

        ``last`` must follow once all bytes have passed.

        Raises:
            CrdError: as ``call``.
        """
        self._socket.settimeout(None)
        self._send(Call(f"{INTERFACE}.{method}", parameters, upgrade=True))
        message = bytearray()
        while not message.endswith(b"\0"):
            message += self._receive_up_to_nul()
        return _result(decode_reply(message[:-1])), self._socket

    def last(self) -> dict[str, Any]:
        """Return the result that follows the bytes of an upgraded call.

        Raises:
            CrdError: as ``call``: what passed is no image.
        """
        return _result(self._receive())

    def _receive_up_to_nul(self) -> bytes:
        """Take nothing of what is behind the reply, which is no reply."""
        try:
            ahead = self._socket.recv(_READ_BYTES, socket.MSG_PEEK)
            data = self._socket.recv(ahead.find(b"\0") + 1 or len(ahead)) if ahead else b""
        except OSError as error:
            raise self._lost(error) from error
        if not data:
            raise self._lost()
        return data

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _send(self, call: Call) -> None:
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # why it hung up is still there to be read
                self._socket.sendall(encode(call))
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self) -> Reply:
        if self._unheard and not self._arrived:
            self._listen(self._unheard)
        while not self._arrived:
            try:
                data = self._socket.recv(_READ_BYTES)
            except OSError as error:
                raise self._lost(error) from error
            if not data:
                raise self._lost()
            self._arrived += self._buffer.feed(data)
        return decode_reply(self._arrived.pop(0))

    def _listen(self, unheard: Callable[[Path], object]) -> None:
        """Wait a while for the first bytes of an answer."""
        self._unheard = None
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        if not waiting.poll(_UNHEARD_SECONDS * 1000) and not _answers(self._path):
            unheard(self._path)

    def _lost(self, error: OSError | None = None) -> DaemonUnavailable:
        if isinstance(error, TimeoutError):
            return DaemonUnavailable(f"the daemon at {self._path} does not answer",
                                     hint="Its log says what it is doing: journalctl -u crd.")
        return DaemonUnavailable(f"the daemon at {self._path} hung up before it had answered",
                                 hint="It was stopped, or failed; its log says which.")


def _answers(path: Path) -> bool:
    """Whether the daemon answers at all: what it was asked may take long."""
    try:
        with Client(path) as other:
            other._socket.settimeout(_SIGN_SECONDS)
            other._send(Call(f"{SERVICE}.GetInfo", {}))
            other._receive()
    except CrdError:
        return False
    return True


def _timeval(seconds: float) -> bytes:
    """Return struct timeval, as socket(7) wants it."""
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


def _no_connection(path: Path, error: OSError) -> ApiError:
    if isinstance(error, PermissionError):
        return AccessDenied(f"you may not connect to {path}",
                            hint="Become a member of the group crd (usermod -aG crd USER, then log in again), or root.")
    if error.errno == errno.ECONNREFUSED and path.is_socket():
        return DaemonUnavailable(f"no daemon listens on {path}",
                                 hint="Start it: systemctl start crd, or crd run. If it has failed: journalctl -u crd "
                                      "says why, and systemctl reset-failed 'crd.*' has it tried again.")
    if isinstance(error, FileNotFoundError):
        return DaemonUnavailable(f"there is no socket {path}",
                                 hint="Start the daemon (systemctl restart crd.socket crd, or crd run), or say where "
                                      f"its socket is with --socket or {SOCKET_VARIABLE}.")
    why = "it is no socket" if error.errno == errno.ECONNREFUSED else error.strerror or error
    return DaemonUnavailable(f"{path} cannot be connected to: {why}",
                             hint=f"Is this the daemon's socket? --socket and {SOCKET_VARIABLE} say where it is.")


def _result(reply: Reply) -> dict[str, Any]:
    parameters = reply.parameters or {}
    if reply.error is None:
        return parameters
    if reply.error == FAILED:
        raise _failure(parameters)
    if reply.error == f"{SERVICE}.InvalidParameter":
        raise BadRequest(f"the daemon does not take {parameters.get('parameter')!s} so")
    raise ApiError(f"the daemon says {reply.error} {parameters}",
                   hint="Is it of the same version as crctl? Restart it after an upgrade.")


def _failure(parameters: dict[str, Any]) -> CrdError:
    details = parameters.get("details")
    fields = details if isinstance(details, dict) else {}
    return CrdError.from_json({**fields, "error": parameters.get("code"), "message": parameters.get("message", ""),
                               "hint": parameters.get("hint", "")})
