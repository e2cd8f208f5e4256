"""Hosts on a network of their own: a network namespace each, joined by a bridge, at which we have an address, too."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

_LINK = "eth0"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Network:
    """Hosts by name.  A context manager; addresses are of the range for tests of networks (RFC 2544).

    Attributes:
        address: ours.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = {host: f"crd-{os.getpid()}-{host}" for host in hosts}
        self._bridge = f"crd{os.getpid()}"
        self._subnet = f"198.{18 + os.getpid() % 2}.{os.getpid() // 2 % 255}"
        self._stack = ExitStack()
        self.address = f"{self._subnet}.1"

    def __enter__(self) -> Self:
        with self._stack:
            _ip("link", "add", self._bridge, "type", "bridge")
            self._stack.callback(_ip, "link", "del", self._bridge)
            _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for number, (host, space) in enumerate(self._hosts.items(), 2):
                _ip("netns", "add", space)
                self._stack.callback(_ip, "netns", "del", space)
                port = f"{self._bridge}-{number}"
                _ip("link", "add", port, "type", "veth", "peer", "name", _LINK, "netns", space)
                self._stack.callback(_ip, "link", "del", port)  # with its namespace it would go some time later
                _ip("link", "set", port, "master", self._bridge, "up")
                _ip("-n", space, "addr", "add", f"{self._subnet}.{number}/24", "dev", _LINK)
                _ip("-n", space, "link", "set", "lo", "up")
                self.join(host)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stack.close()

    def on(self, host: str) -> tuple[str, ...]:
        """Return a command that executes the one that follows on a host."""
        return ("nsenter", f"--net=/run/netns/{self._hosts[host]}", "--")

    def cut(self, host: str) -> None:
        """Have nothing come or go any more: whoever is connected is told nothing."""
        _ip("-n", self._hosts[host], "link", "set", _LINK, "down")

    def join(self, host: str) -> None:
        """Undo ``cut``."""
        _ip("-n", self._hosts[host], "link", "set", _LINK, "up")


@contextmanager
def relay(address: str, server: tuple[str, int] | str) -> Iterator[int]:
    """Pass on connections from a port of this address, which is returned, to a server; a path is of a unix socket."""
    with socket.create_server((address, 0)) as listener:
        threading.Thread(target=_accept, args=(listener, server), daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # which ends accept(2)


def _accept(listener: socket.socket, server: tuple[str, int] | str) -> None:
    with suppress(OSError):
        while True:
            near, _ = listener.accept()
            threading.Thread(target=_pass_on, args=(near, server), daemon=True).start()


def _pass_on(near: socket.socket, server: tuple[str, int] | str) -> None:
    with near, socket.socket(socket.AF_UNIX if isinstance(server, str) else socket.AF_INET) as far, suppress(OSError):
        far.connect(server)
        back = threading.Thread(target=_copy, args=(far, near), daemon=True)
        back.start()
        _copy(near, far)
        back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
