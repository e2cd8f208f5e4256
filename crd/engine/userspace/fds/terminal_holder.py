"""Holds the masters of terminals whose programs nobody listens to: a program of its own, which needs nothing of crd.

    python -I -S terminal_holder.py FIRST COUNT

Descriptor FIRST is a pidfd of the first process, and as many masters as COUNT says follow.  What is written there is
taken in, so that no program waits for somebody to read it.  A master says EIO while nobody has its terminal open
(pty(7)), which somebody may open again as long as that process lives; after its end that is the end.
"""

import os
import select
import sys

NAME = b"crd-terminal"
LOOK_AGAIN_SECONDS = 0.5
PIECE_BYTES = 1 << 16


def leave_all_else(first: int, count: int) -> None:
    """Keep nothing of whoever started this."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.closerange(3, first)
    os.closerange(first + 1 + count, os.sysconf("SC_OPEN_MAX"))
    with open("/proc/self/comm", "wb") as comm:
        comm.write(NAME)


def drain(master: int) -> bool:
    """Take in what is there; false: nobody has the terminal open."""
    try:
        return bool(os.read(master, PIECE_BYTES))
    except OSError:
        return False


def main() -> None:
    """Hold them."""
    first, count = map(int, sys.argv[1:])
    leave_all_else(first, count)
    pidfd, masters = first, list(range(first + 1, first + 1 + count))
    while masters:
        closed = [master for master in select.select(masters, [], [])[0] if not drain(master)]
        if closed and select.select([pidfd], [], [], LOOK_AGAIN_SECONDS)[0]:
            for master in closed:
                os.close(master)
                masters.remove(master)


main()
