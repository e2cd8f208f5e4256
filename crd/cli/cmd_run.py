"""``crctl run``."""

from __future__ import annotations

import errno
import os
import shutil
import signal

import click

from crd import syscalls
from crd.cli.daemon import connect, socket_option
from crd.errors import BadRequest, CrdError, FeatureMissing
from crd.ids import parse_target_name

_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PROGRAM [ARGUMENT]...")
@click.option("--target", metavar="NAME", help="Make it a target, too, which the daemon checkpoints regularly.")
@click.option("--every", metavar="DURATION", help="How often: 30s, 5min, 1h ...")
@socket_option
def run(program: tuple[str, ...], *, target: str | None, every: str | None) -> None:
    """Become PROGRAM, for which checkpoint and restart exist as system calls.

    It calls them by number, with syscall(2) or by crd.h or crd.selfckpt: checkpoint(0, fd, 0) writes an image of the
    process and its descendants to a descriptor and returns its crid; when that image is restarted, the call returns 0.
    All that the program starts can do the same.  While the daemon is away they fail with ENOSYS, and while systemd
    relaunches it they wait.

    Exit status: 0 or whatever PROGRAM ends with; 1 failed, 2 usage, 10 daemon unavailable, 12 denied, 13 Linux is older
    than 5.19, 14 the name of the target is taken, or too many programs are served.
    """
    if (target is None) != (every is None):
        raise click.UsageError("give both of --target and --every, or none", click.get_current_context())
    path = shutil.which(program[0])
    if path is None:
        raise BadRequest(f"there is no program {program[0]}", hint="Name it by its path if PATH does not lead there.")
    with connect() as daemon:
        listener = _install()
        if listener is not None:
            daemon.call("Serve", listener=listener)
            os.close(listener)
        if target is not None:
            daemon.call("AddTarget", target={"name": parse_target_name(target), "pid": os.getpid(), "every": every,
                                             "held": False})
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(path, program)
    except OSError as error:
        raise CrdError(f"{path} cannot be executed: {error.strerror}", path=path) from error


def _install() -> int | None:
    """Install the filter and return its listener; None if this process runs under ``crctl run`` itself."""
    try:
        return syscalls.install()
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise FeatureMissing("this kernel cannot have the calls served", hint="Linux 5.19 or newer can.") from error
        if error.errno == errno.EBUSY and _is_served():
            return None
        if error.errno == errno.EBUSY:
            raise CrdError("something else is told of system calls here already (seccomp_unotify(2))",
                           hint="Run it outside of that container or sandbox.") from error
        raise CrdError(f"the filter cannot be installed: {error.strerror}") from error


def _is_served() -> bool:
    """Whether it is crd that is told of calls: undefined flags are then what is wrong with this one."""
    try:
        syscalls.syscall(syscalls.NR_CHECKPOINT, 0, -1, 1)
    except OSError as error:
        return error.errno == errno.EINVAL
    return False
