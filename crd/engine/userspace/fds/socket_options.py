"""Options of sockets that are not as in a new one (socket(7), tcp(7), ip(7), ipv6(7), netlink(7))."""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from crd.errors import RestartError
from crd.image.sockets import SocketOption

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SO_PEEK_OFF = 42
SOL_NETLINK = 270
_SO_BUF_LOCK = 72
_SNDBUF, _RCVBUF, _SNDBUFFORCE, _RCVBUFFORCE = 7, 8, 32, 33
_FORCED = {(socket.SOL_SOCKET, _SNDBUF): _SNDBUFFORCE, (socket.SOL_SOCKET, _RCVBUF): _RCVBUFFORCE}
_SOCKET = (2, 5, 6, _SNDBUF, _RCVBUF, 9, 10, 11, 12, 13, 15, 16, 18, 20, 21, 29, 34, 35, 36, 37, 40, SO_PEEK_OFF, 43,
           45, 46, 47, 60, 61, 62, 64, 69, 70, 72, 74, 75, 76, 82, 83)
_IP = (1, 2, 3, 6, 8, 10, 11, 12, 13, 15, 19, 20, 21, 24, 50, 51)
_IP_MULTICAST = (32, 33, 34, 49)
_IPV6_MULTICAST = (17, 18, 19)
_IPV6 = (16, 23, 25, 26, 33, 49, 51, 66, 67, 72, 73, 74, 75, 78)
_TCP = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 18, 23, 25, 27, 36)
_UDP = (100, 101, 102, 103, 104)
_NETLINK = (3, 4, 5, 8, 10, 11, 12)
_BYTES_MAX = 16


def _wanted(family: int, kind: int) -> Iterator[tuple[int, int]]:
    yield from ((socket.SOL_SOCKET, name) for name in _SOCKET)
    streams, inet = kind == socket.SOCK_STREAM, family in {socket.AF_INET, socket.AF_INET6}
    if inet:  # also of IPv6: its sockets speak IPv4, too
        yield from ((socket.IPPROTO_IP, name) for name in (_IP if streams else _IP + _IP_MULTICAST))
    if family == socket.AF_INET6:
        yield from ((socket.IPPROTO_IPV6, name) for name in (_IPV6 if streams else _IPV6 + _IPV6_MULTICAST))
    if family == socket.AF_NETLINK:
        yield from ((SOL_NETLINK, name) for name in _NETLINK)
    if inet and streams:
        yield from ((socket.IPPROTO_TCP, name) for name in _TCP)
    if inet and kind == socket.SOCK_DGRAM:
        yield from ((socket.IPPROTO_UDP, name) for name in _UDP)


def _read(sock: socket.socket, family: int, kind: int) -> dict[tuple[int, int], bytes]:
    found = {}
    for level, name in _wanted(family, kind):
        try:
            found[level, name] = sock.getsockopt(level, name, _BYTES_MAX)
        except OSError:  # not of this kind of socket, or of this kernel
            continue
    return found


@cache
def _defaults(family: int, kind: int) -> dict[tuple[int, int], bytes]:
    with socket.socket(family, kind) as fresh:
        return _read(fresh, family, kind)


def look_anew() -> None:
    """Forget what a new socket is like: the host's settings (sysctl(8)) may have changed since."""
    _defaults.cache_clear()


def dump(sock: socket.socket) -> list[SocketOption]:
    """Return the options that are not as in a new socket of its kind."""
    defaults = _defaults(sock.family, sock.type)
    return [SocketOption(level=level, name=name, bytes=len(value), low=int.from_bytes(value[:8], "little"),
                         high=int.from_bytes(value[8:], "little"))
            for (level, name), value in _read(sock, sock.family, sock.type).items()
            if value != defaults.get((level, name))]


def _reset_room(sock: socket.socket) -> None:
    """Size the buffers as those of a new socket: they may have been made larger for what waits in them."""
    for (level, name), forced in _FORCED.items():
        default = int.from_bytes(_defaults(sock.family, sock.type)[level, name], "little")
        if sock.getsockopt(level, name) != default:
            sock.setsockopt(level, forced, default // 2)  # the kernel doubles what is set


def restart(sock: socket.socket, options: Sequence[SocketOption]) -> None:
    """Set options.

    Raises:
        RestartError: the kernel refuses one.
    """
    known = set(_wanted(sock.family, sock.type))
    _reset_room(sock)
    for option in options:
        if (option.level, option.name) not in known:
            raise RestartError(f"option {option.name} of level {option.level} of a socket is none that crd saves")
        value = option.low.to_bytes(8, "little") + option.high.to_bytes(8, "little")
        name = option.name
        try:
            if forced := _FORCED.get((option.level, name)):
                sock.setsockopt(option.level, forced, option.low // 2)
            else:
                sock.setsockopt(option.level, name, value[:option.bytes])
        except OSError as error:
            raise RestartError(f"option {name} of level {option.level} of a socket: {error.strerror}",
                               errno=error.errno) from error
    locked = next((one.low for one in options if (one.level, one.name) == (socket.SOL_SOCKET, _SO_BUF_LOCK)), 0)
    with suppress(OSError):  # a kernel before 5.14
        sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, locked)  # setting a size has kept the kernel from changing it
