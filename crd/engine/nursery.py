"""Where workers come from: a process that has loaded all they need and forks one when it is asked.

``python -m crd.engine.nursery FD`` answers over a SOCK_SEQPACKET socket: for a socket, which the worker is to serve
(SCM_RIGHTS), the pid of a new worker in decimal, and a pidfd beside it.  It ends when nobody holds the other end.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from crd.engine.channel import Channel
from crd.engine.userspace.haste import Haste
from crd.engine.worker import serve

if TYPE_CHECKING:
    from types import FrameType

_MODULES = ("crd.engine.userspace.dump", "crd.engine.userspace.restart", "crd.engine.kernel.calls",
            "crd.engine.kernel.proof")
_ENDED = {signal.SIGCHLD}


def main() -> None:
    """Make workers until nobody wants any more."""
    os.umask(0o077)
    for module in _MODULES:
        import_module(module)
    gc.freeze()  # so that no collection copies what all share
    Haste.share()
    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        while True:
            try:
                data, fds, _flags, _address = socket.recv_fds(control, 1, 1)
            except ConnectionResetError:  # killed while it still wanted one
                return
            if not data:
                return
            _make(control, fds[0])


def _make(control: socket.socket, fd: int) -> None:
    """Fork a worker, and tell its pid."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDED)  # until there is a pidfd, its pid must not become another's
    pid = os.fork()
    if not pid:
        _work(control, fd)
    os.close(fd)
    pidfd = os.pidfd_open(pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDED)
    with suppress(OSError):  # then nobody listens, as the next call will find
        socket.send_fds(control, [str(pid).encode()], [pidfd])
    os.close(pidfd)


def _work(control: socket.socket, fd: int) -> None:
    """Be a worker; this does not return."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDED)
        control.close()
        os.setsid()
        serve(Channel(fd))
        status = 0
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)


def _reap(_number: int, _frame: FrameType | None) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()
