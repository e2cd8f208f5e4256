"""Serves the metrics over HTTP, off the event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import start_http_server

from crd.errors import SettingsError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from prometheus_client import CollectorRegistry


class Exporter:
    """An HTTP server in threads of its own.  A context manager.

    Attributes:
        url: where it serves, empty if it is off.
    """

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        """Serve at ``host:port``; empty: not at all; port 0: any free one.

        Raises:
            SettingsError: the address cannot be used.
        """
        self.url = ""
        self._server = None
        if not listen:
            return
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        try:
            self._server, self._thread = start_http_server(int(port), host, registry)
        except (OSError, OverflowError) as error:
            raise SettingsError(f"metrics.listen: {listen}: {error}",
                                hint="Choose another address, or turn it off with an empty one.") from error
        self.url = f"http://{listen.rpartition(':')[0]}:{self._server.server_port}/metrics"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
