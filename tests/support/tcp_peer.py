"""The other end of the connections that tests/victims/peers.c makes."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

WAITING, HALF, ENDED, REPLY, MORE, GAP = 60000, 30, 40, 50, 1000, 5000
PATIENCE_SECONDS = 60.0
_PERIOD = bytes((at * 17 + at // 251) & 0xFF for at in range(251 * 256))
_CLONE_NEWNET = 0x40000000


def pattern(start: int, end: int) -> bytes:
    """Return the bytes that both ends expect there."""
    first = start % len(_PERIOD)
    return (_PERIOD * ((first + end - start) // len(_PERIOD) + 1))[first:first + end - start]


@contextmanager
def network_of(pid: int) -> Iterator[None]:
    """Make sockets in the network namespace of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    ours, theirs = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        assert libc.setns(theirs, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(ours, _CLONE_NEWNET) == 0
        os.close(ours)
        os.close(theirs)


class Peer:
    """Answers on all connections; a context manager."""

    def __init__(self, address: str) -> None:
        """Listen."""
        self._listener = socket.create_server((address, 0),
                                              family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._listener.settimeout(PATIENCE_SECONDS)
        self.address, self.port = self._listener.getsockname()[:2]
        self.by_tag: dict[str, socket.socket] = {}
        self.played = 0
        self.play_error: OSError | None = None
        self._sent_to_waiting = WAITING
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._listener.close()
        for sock in self.by_tag.values():
            sock.close()

    def _accept(self) -> None:
        while len(self.by_tag) < 5:
            sock, _ = self._listener.accept()
            sock.settimeout(PATIENCE_SECONDS)
            self._begin(sock.recv(1).decode(), sock)

    def _begin(self, tag: str, sock: socket.socket) -> None:
        self.by_tag[tag] = sock
        if tag == "w":
            sock.sendall(pattern(0, WAITING))
        elif tag == "e":
            sock.sendall(pattern(0, ENDED))
            sock.shutdown(socket.SHUT_WR)
        elif tag == "p":
            self._threads.append(threading.Thread(target=self._play, args=[sock], daemon=True))
            self._threads[-1].start()

    def _play(self, sock: socket.socket) -> None:
        try:
            while number := sock.recv(8, socket.MSG_WAITALL):
                assert int.from_bytes(number, "little") == self.played + 1
                self.played += 1
                sock.sendall(number)
        except OSError as error:
            self.play_error = error

    def send_into_the_gap(self) -> None:
        """Send what nobody is there to receive."""
        start = self._sent_to_waiting
        self._sent_to_waiting += GAP
        self.by_tag["w"].sendall(pattern(start, start + GAP))

    def finish(self) -> None:
        """Do our part of the end, while the victim verifies itself."""
        self.by_tag["w"].shutdown(socket.SHUT_WR)
        assert int.from_bytes(self.by_tag["w"].recv(8, socket.MSG_WAITALL), "little") == self._sent_to_waiting
        assert _all(self.by_tag["e"]) == pattern(0, REPLY)
        assert _all(self.by_tag["h"]) == pattern(0, HALF)
        self.by_tag["h"].sendall(pattern(0, HALF))
        self.by_tag["h"].close()
        found = _all(self.by_tag["f"])
        assert found == pattern(0, len(found)), "bytes are lost or doubled"
        assert len(found) > WAITING
        self.by_tag["f"].close()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
        assert self.played
        assert self.play_error is None

    def has_been_told(self) -> bool:
        """Whether those connections are over on this side, too, in which nothing is in the way of the news."""
        return all(self.by_tag[tag].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1 for tag in "pw")


def _all(sock: socket.socket) -> bytes:
    found = bytearray()
    while data := sock.recv(1 << 16):
        found += data
    return bytes(found)
