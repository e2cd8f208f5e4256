"""Sitting at a terminal of restarted tasks: it and our standard streams are relayed to each other."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import termios
import tty
from contextlib import contextmanager, suppress
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

_PIECE_BYTES = 1 << 16
_IN, _OUT = 0, 1


class End(Enum):
    """Why nothing is relayed any more."""

    ENDED = auto()
    """The first task has."""
    DETACHED = auto()
    """The key was pressed."""
    TAKEN = auto()
    """Somebody else has the terminal now, or nobody."""


@contextmanager
def terminal_kept() -> Iterator[None]:
    """Put the terminal back to how it was, and ourselves into its foreground, however that ends.

    Without a terminal there is nothing to do.
    """
    fd = next((fd for fd in range(3) if is_ours(fd)), None)
    if fd is None:
        yield
        return
    settings = termios.tcgetattr(fd)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # we take it back from the background
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        yield
    finally:
        with suppress(OSError, termios.error):  # it is gone
            os.tcsetpgrp(fd, os.getpgrp())
            termios.tcsetattr(fd, termios.TCSADRAIN, settings)


def is_ours(fd: int) -> bool:
    """Whether a descriptor is of the terminal that controls our session, and we are in its foreground."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def relay(masters: Sequence[int], pidfd: int, *, connection: int | None = None, key: bytes = b"") -> End:
    """Relay between our standard streams and terminals, after ``begin``, until the first task has ended, or we leave.

    What is typed goes to the first of them; what is said on the others is dropped.

    Args:
        masters: of the terminals.
        pidfd: of the first task.
        connection: at whose end the terminal is another's.
        key: the byte that, typed, detaches us; empty: none does.
    """
    first, typed, sources = masters[0], b"", [_IN]
    masters, watched = [*masters], [] if connection is None else [connection]
    os.set_blocking(first, False)
    while True:
        ended = select.select([pidfd], [], [], 0)[0]
        # typed input waits while a program does not take it, which keeps no output waiting
        readable, writable, _ = select.select([*masters, *([] if typed or ended else [pidfd, *sources]), *watched],
                                              [first] if typed and not ended else [], [], 0 if ended else None)
        if connection in readable:
            return End.TAKEN
        if ended and not readable:
            return End.ENDED
        for master in readable:
            if master in masters and not _say(master, aloud=master == first):
                masters.remove(master)
        if _IN in readable:
            typed = os.read(_IN, _PIECE_BYTES)
            sources = sources if typed else []
            if key and key in typed:
                return End.DETACHED
        if writable:
            with suppress(BlockingIOError, OSError):
                typed = typed[os.write(first, typed):]


def begin(master: int) -> None:
    """Leave all keys that are typed from now on, and the size of the window, to the program at a terminal."""
    if os.isatty(_IN):
        signal.signal(signal.SIGWINCH, lambda *_: _resize(master))
        _resize(master)
        tty.setraw(_IN, termios.TCSADRAIN)


def have_redrawn(master: int) -> None:
    """Have the program in the foreground draw its screen again, even if that has the size that it knew."""
    with suppress(OSError):
        os.killpg(os.tcgetpgrp(master), signal.SIGWINCH)


def write_out(data: bytes) -> None:
    """Write all of it to our standard output."""
    while data:
        data = data[os.write(_OUT, data):]


def _resize(master: int) -> None:
    """Give the terminal the size of ours, of which the kernel tells its foreground (SIGWINCH)."""
    with suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(_IN, termios.TIOCGWINSZ, bytes(8)))


def _say(master: int, *, aloud: bool) -> bool:
    """Copy what a program says; false: nobody has its terminal open any more."""
    try:
        said = os.read(master, _PIECE_BYTES)
    except BlockingIOError:
        return True
    except OSError:
        return False
    if aloud:
        write_out(said)
    return True
