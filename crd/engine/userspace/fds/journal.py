"""Streams to the journal of systemd: what was said is there already, and a restarted program has a new one."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.unix_calls import connect_to
from crd.errors import ResourceChanged
from crd.image.journal import JournalConnection
from crd.target import journal, procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.engine.userspace.clash import Clash
    from crd.engine.userspace.fds.description import Description
    from crd.engine.userspace.fds.kind import Making
    from crd.engine.userspace.plan import Plan
    from crd.image.objects import UnixSocket

_INFORMATION = 6
_NOTE_BYTES_MAX = 8192
_FORWARDS = {"to_syslog": b"FORWARD_TO_SYSLOG", "to_kernel": b"FORWARD_TO_KMSG", "to_console": b"FORWARD_TO_CONSOLE"}


def connection(one: Description, space: str, peer: int) -> JournalConnection:
    """Return what a stream was begun with.

    Only a note tells that the journal keeps for its own next start (journald-stream.c of systemd).  Where that is
    missing, or is not what we know, it is what programs get by default, under the name of the process.

    Args:
        one: the stream.
        space: namespace of the journal.
        peer: inode of the other end.
    """
    with suppress(OSError, ValueError, KeyError), (
            journal.directory(space) / "streams" / f"{one.stat.st_dev}:{peer}").open("rb") as file:
        said = dict(line.split(b"=", 1) for line in file.read(_NOTE_BYTES_MAX).splitlines() if b"=" in line)
        return JournalConnection(
            socket=one.objref, namespace=space, identifier=_plain(said.get(b"IDENTIFIER", b"")),
            unit=_plain(said.get(b"UNIT", b"")), priority=int(said[b"PRIORITY"]),
            prefixed=int(said[b"LEVEL_PREFIX"] != b"0"),
            **{field: int(said.get(key, b"0") != b"0") for field, key in _FORWARDS.items()})
    return JournalConnection(
        socket=one.objref, namespace=space, identifier=os.fsencode(procfs.stat(one.pid).comm).replace(b"\n", b" "),
        unit=b"", priority=_INFORMATION, prefixed=1, to_syslog=0, to_kernel=0, to_console=0)


def _plain(escaped: bytes) -> bytes:
    """Return a value without its escapes, which are those of C; raises ValueError."""
    return escaped.decode("unicode_escape").encode("latin-1")


def clashes(plan: Plan) -> Iterator[Clash]:
    """Tell which journals are not there."""
    for space in {one.namespace for one in plan.of(JournalConnection)}:
        path = journal.directory(space) / "stdout"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            try:
                sock.connect(os.fspath(path))
            except OSError as error:
                yield ResourceChanged(
                    f"the output of a program goes to the journal, which is not there: {path}: {error.strerror}",
                    path=os.fspath(path), hint="Start systemd-journald.service, or restart it on a host with systemd.")


def make(record: UnixSocket, begun: JournalConnection, making: Making) -> None:
    """Connect a socket of ours to the journal, as the task, and say what it begins with; raises RestartError."""
    first = making.plan.shared.opened[record.objref]
    making.act_as(first.pid)
    connect_to(making, making.ours[record.objref], journal.directory(begun.namespace) / "stdout", _greeting(begun),
               (first.leader.uids[1], first.leader.gids[1]))


def _greeting(begun: JournalConnection) -> bytes:
    """Return the lines that a stream begins with."""
    numbers = begun.priority, begun.prefixed, begun.to_syslog, begun.to_kernel, begun.to_console
    return b"\n".join((begun.identifier, begun.unit, *(b"%d" % number for number in numbers), b""))
