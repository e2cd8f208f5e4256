"""Taking a seat at a terminal that crd holds for restarted tasks, by a connection to who holds it."""

from __future__ import annotations

import os
import re
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from crd.console.relay import End, begin, have_redrawn, relay, terminal_kept, write_out
from crd.errors import TerminalTaken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LENGTH_BYTES = 8
DETACH_KEY = b"\x1d"
"""Ctrl-]."""
_KEY = re.compile(r"\^([@-_a-z?])")


def _byte(_context: click.Context, _parameter: click.Parameter, text: str) -> bytes:
    if text == "none":
        return b""
    if not (found := _KEY.fullmatch(text)):
        raise click.BadParameter(f"{text!r} is neither ^X, for Ctrl and a key, nor none")
    return bytes([ord(found[1].upper()) ^ 0x40])


key_option = click.option(
    "--key", default="^]", show_default=True, callback=_byte, metavar="^X|none",
    help="What detaches from the terminal when it is typed, and leaves the tasks running.")


def attach(ask: Callable[[int], int], key: bytes) -> None:
    """Sit at a terminal until the first task has ended, or ``key`` is typed.

    Args:
        ask: has the terminal given to who has the other end of a descriptor, and returns the pid of whose it is.
        key: as of ``relay``.

    Raises:
        TerminalTaken: somebody else took the seat.
        CrdError: what ``ask`` raises.
    """
    detaching = f"; Ctrl-{chr(key[0] ^ 0x40)} detaches" if key else ""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            pid = ask(theirs.fileno())
        with _seat(ours) as (master, pidfd, said), terminal_kept():
            begin(master)
            click.echo(f"attached to process {pid}{detaching}\r", err=True)
            write_out(said)
            have_redrawn(master)
            end = relay([master], pidfd, connection=ours.fileno(), key=key)
    if end is End.TAKEN:
        raise TerminalTaken(f"the terminal of process {pid} is somebody else's now, or closed")
    if end is End.DETACHED:
        click.echo(f"\ndetached from process {pid}, which runs on", err=True)


@contextmanager
def _seat(ours: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Receive master and pidfd, and what was said meanwhile."""
    data, fds, _flags, _address = socket.recv_fds(ours, _LENGTH_BYTES, 2)
    try:
        if len(fds) != 2 or len(data) != _LENGTH_BYTES:
            raise TerminalTaken("nobody holds the terminal any more")
        rest = int.from_bytes(data, "big")
        said = b""
        while len(said) < rest and (piece := ours.recv(rest - len(said))):
            said += piece
        yield fds[0], fds[1], said
    finally:
        for fd in fds:
            os.close(fd)


def need_terminal() -> None:
    """Make sure that there is somebody to sit down; raises UsageError."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("standard input and output are no terminal", click.get_current_context())
