"""Holds the masters of terminals, and takes in what is said there: a program of its own, which needs nothing of crd.

    python -I -S terminal_holder.py DOOR FIRST COUNT

Descriptor FIRST is a pidfd of the first process, and as many masters as COUNT says follow.  What is written there is
taken in, so that no program waits for somebody to read it; the last of it is kept.  A master says EIO while nobody has
its terminal open (pty(7)), which somebody may open again as long as that process lives; after its end that is the end.

DOOR and descriptor 0 are the two ends of a socket.  Whoever may take descriptor 0 (pidfd_getfd(2)) can send the number
of a terminal through it, and a connection (SCM_RIGHTS): by that comes how many bytes were kept, in eight bytes, with
the master and the pidfd beside it, and then the bytes.  As long as the connection is open who has its other end is who
reads the master; the next connection ends it.
"""

import fcntl
import os
import select
import socket
import sys

NAME = b"crd-terminal"
LOOK_AGAIN_SECONDS = 0.5
PIECE_BYTES = KEPT_BYTES = 1 << 16
TIOCGPTN = 0x80045430


class Terminal:
    """A master, what was said there while nobody listened, and the connection to who does."""

    def __init__(self, master: int) -> None:
        """Hold it."""
        self.master = master
        self.number = int.from_bytes(fcntl.ioctl(master, TIOCGPTN, bytes(4)), sys.byteorder)
        self.kept = b""
        self.connection: socket.socket | None = None

    def watched(self) -> int:
        """Return the descriptor at which something happens next."""
        return self.connection.fileno() if self.connection else self.master

    def give(self, connection: socket.socket, pidfd: int) -> None:
        """Leave the master to who is at the other end of a connection, and to nobody else any more."""
        self.leave()
        connection.setblocking(False)
        message = len(self.kept).to_bytes(8, "big") + self.kept
        try:
            if socket.send_fds(connection, [message], [self.master, pidfd]) == len(message):
                self.connection, self.kept = connection, b""
        except OSError:  # nobody is there, or does not want it
            pass

    def leave(self) -> None:
        """End the connection, if there is one."""
        if self.connection:
            self.connection.close()
            self.connection = None

    def take_in(self) -> bool:
        """Take in what there is; false: nobody has the terminal open."""
        try:
            if self.connection:
                if not self.connection.recv(PIECE_BYTES):
                    self.leave()
                return True
            said = os.read(self.master, PIECE_BYTES)
        except OSError:
            self.leave()
            return False
        self.kept = (self.kept + said)[-KEPT_BYTES:]
        return bool(said)


def leave_all_else(door: int, first: int, count: int) -> None:
    """Keep nothing of whoever started this."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.closerange(3, door)
    os.closerange(first + count + 1, os.sysconf("SC_OPEN_MAX"))
    with open("/proc/self/comm", "wb") as comm:
        comm.write(NAME)


def admit(door: socket.socket, terminals: list[Terminal], pidfd: int) -> None:
    """Give the terminal that is asked for to who asks."""
    data, fds, _flags, _address = socket.recv_fds(door, 16, 1)
    for fd in fds:
        connection = socket.socket(fileno=fd)
        for terminal in terminals:
            if terminal.number == int(data):
                terminal.give(connection, pidfd)


def main() -> None:
    """Hold them."""
    at, first, count = map(int, sys.argv[1:])
    leave_all_else(at, first, count)
    door, pidfd = socket.socket(fileno=at), first
    terminals = [Terminal(master) for master in range(first + 1, first + 1 + count)]
    while terminals:
        ready = select.select([at, *(terminal.watched() for terminal in terminals)], [], [])[0]
        closed = [terminal for terminal in terminals if terminal.watched() in ready and not terminal.take_in()]
        if at in ready:
            admit(door, terminals, pidfd)
        elif closed and pidfd in select.select([pidfd, at], [], [], LOOK_AGAIN_SECONDS)[0]:
            for terminal in closed:
                os.close(terminal.master)
                terminals.remove(terminal)


main()
