"""Serves the metrics over HTTP, off the event loop."""

from __future__ import annotations

import errno
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from socketserver import BaseRequestHandler, TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from crd.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

_PATH = "/metrics"
_AT_ONCE = 32
_REQUEST_BYTES_MAX = 1 << 14
_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_NAP_SECONDS = 0.5


class Exporter:
    """An HTTP server in threads of its own.  A context manager.

    It is not compressed: of what many targets make that would take longer than all the rest.

    Attributes:
        url: where it serves, empty if it is off.
        fd: of the socket that listens, None if it is off.
    """

    def __init__(self, listen: str, exposition: Callable[[], list[bytes]], passed_fd: int | None = None) -> None:
        """Serve at ``host:port``; empty: not at all; port 0: any free one.

        Args:
            listen: where.
            exposition: the text, in parts.
            passed_fd: a socket that may listen there already; it is ours from here on.

        Raises:
            SettingsError: the address cannot be used.
        """
        self.url = ""
        self.fd: int | None = None
        self._server = None
        passed = None if passed_fd is None else socket.socket(fileno=passed_fd)
        if not listen:
            if passed:
                passed.close()
            return
        host, _, port = listen.rpartition(":")
        try:
            family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM,
                                                          flags=socket.AI_PASSIVE)[0]
            self._server = _Server(family, address, exposition, passed)
        except (OSError, OverflowError, UnicodeError) as error:
            raise SettingsError(f"metrics.listen: {listen}: {error}",
                                hint="Choose another address, or turn it off with an empty one.") from error
        self.url = f"http://{host}:{self._server.server_address[1]}{_PATH}"
        self.fd = self._server.fileno()
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class _Server(ThreadingMixIn, TCPServer):
    """A thread for each connection, of which there are only so many at a time."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, family: int, address: Any, exposition: Callable[[], list[bytes]],
                 passed: socket.socket | None) -> None:
        self.address_family = family
        self.exposition = exposition
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        self._passed = passed
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Take the socket that was passed, if it is bound to where we are to listen; else bind our own."""
        if self._passed and (self._passed.family, self._passed.getsockname()) == (self.address_family,
                                                                                self.server_address):
            self.socket.close()
            self.socket = self._passed
            return
        if self._passed:
            self._passed.close()
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; when there are no descriptors left, not again at once."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                time.sleep(_NAP_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # no thread can be had
                self._room.release()
                self.shutdown_request(request)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nobody's concern but its own."""


class _Handler(BaseRequestHandler):
    """One request and its answer; a peer that is slow with either is hung up on."""

    server: _Server
    request: socket.socket

    def handle(self) -> None:
        with suppress(OSError):
            method, path = self._asked()
            self.request.settimeout(_ANSWER_SECONDS)
            if method not in {"GET", "HEAD"}:
                self._answer(HTTPStatus.METHOD_NOT_ALLOWED, [b"only GET\n"])
            elif path != _PATH:
                self._answer(HTTPStatus.NOT_FOUND, [f"there is only {_PATH}\n".encode()])
            else:
                self._answer(HTTPStatus.OK, self.server.exposition(), send_body=method == "GET")

    def _asked(self) -> tuple[str, str]:
        """Read a request; return its method and its path.

        Raises:
            OSError: it is not whole in time, or too long.
        """
        deadline, head = time.monotonic() + _REQUEST_SECONDS, b""
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            self.request.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = self.request.recv(_REQUEST_BYTES_MAX)
            head += chunk
            if not chunk or len(head) > _REQUEST_BYTES_MAX:
                raise OSError("no request")
        method, path, *_ = [*head.split(b"\n", 1)[0].decode("latin-1").split(), "", ""]
        return method, path.partition("?")[0]

    def _answer(self, status: HTTPStatus, body: list[bytes], *, send_body: bool = True) -> None:
        head = (f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {CONTENT_TYPE_PLAIN_0_0_4}\r\n"
                f"Content-Length: {sum(map(len, body))}\r\nConnection: close\r\n\r\n")
        for part in [head.encode(), *(body if send_body else ())]:
            self.request.sendall(part)
