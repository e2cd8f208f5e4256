"""The firewall of the kernel, told by netlink: tables, sets and rules of nf_tables, as far as crd needs them.

No program of nftables or iptables need be there.  Numbers are those of include/uapi/linux/netfilter/nf_tables.h;
attributes are in network byte order.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

NEW_TABLE, GET_TABLE, NEW_CHAIN, NEW_RULE, NEW_SET, NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT = 0, 1, 3, 6, 9, 12, 13, 14
CREATE, EXCLUSIVE, APPEND = 0x400, 0x200, 0x800

_NETFILTER, _SUBSYSTEM = 12, 10
_REQUEST, _ACKNOWLEDGE = 1, 4
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_ERROR = 2
_INET = 1  # NFPROTO_INET: IPv4 and IPv6
_HEADER = struct.Struct("<IHHII")  # struct nlmsghdr
_FAMILY = struct.Struct(">BBH")  # struct nfgenmsg
_BUFFER_BYTES = 64 << 10
_NESTED = 0x8000

Message = tuple[int, int, bytes]
"""Kind (NEW_TABLE, ...), flags, attributes."""


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute."""
    length = 4 + len(value)
    return struct.pack("<HH", length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that is made of attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def number(kind: int, value: int) -> bytes:
    """Return an attribute that is a number of 32 bits."""
    return attribute(kind, struct.pack(">I", value))


def text(kind: int, value: str) -> bytes:
    """Return an attribute that is a name."""
    return attribute(kind, value.encode() + b"\0")


def expression(name: str, *attributes: bytes) -> bytes:
    """Return an expression of a rule."""
    return nested(1, text(1, name), nested(2, *attributes))


class Firewall:
    """A line to nf_tables of our network namespace; tables that are owned by it go when it is closed.

    A context manager.
    """

    def __init__(self) -> None:
        """Open it; raises OSError where the kernel has none."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def change(self, messages: Sequence[Message]) -> None:
        """Do all of these, or none; raises OSError."""
        frame = _FAMILY.pack(0, 0, _SUBSYSTEM)
        begin = self._message(_BATCH_BEGIN, 0, frame)
        told = [self._message(_SUBSYSTEM << 8 | kind, _ACKNOWLEDGE | flags, _FAMILY.pack(_INET, 0, 0) + body)
                for kind, flags, body in messages]
        self._socket.send(b"".join([begin, *told, self._message(_BATCH_END, 0, frame)]))
        self._await(len(messages))

    def ask(self, kind: int, body: bytes) -> bool:
        """Return whether something is there; raises OSError if that cannot be told."""
        self._socket.send(self._message(_SUBSYSTEM << 8 | kind, _ACKNOWLEDGE, _FAMILY.pack(_INET, 0, 0) + body))
        try:
            self._await(1)
        except FileNotFoundError:
            return False
        return True

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._sequence, 0) + body

    def _await(self, acknowledgements: int) -> None:
        """Wait for so many; the first that is an error is raised when all are there."""
        failed = 0
        while acknowledgements:
            answers = self._socket.recv(_BUFFER_BYTES)
            while answers:
                length, kind, _, _, _ = _HEADER.unpack_from(answers)
                if kind == _ERROR:
                    acknowledgements -= 1
                    failed = failed or -int.from_bytes(answers[_HEADER.size:_HEADER.size + 4], "little", signed=True)
                    if failed and acknowledgements:  # the kernel may stop at the first
                        self._drain()
                        acknowledgements = 0
                answers = answers[length + -length % 4:]
        if failed:
            raise OSError(failed, os.strerror(failed))

    def _drain(self) -> None:
        while True:
            try:
                self._socket.recv(_BUFFER_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
