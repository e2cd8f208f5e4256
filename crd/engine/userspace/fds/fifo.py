"""Pipes with a name: fifo(7).

Whoever has the name can open one, so others may hold it too; what is in flight is put back only if nothing is there.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from crd.engine.userspace.fds.pipe_data import fill, readable
from crd.errors import ResourceChanged
from crd.image.objects import PipeData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.userspace.broker import Broker
    from crd.engine.userspace.fds.kind import Making
    from crd.image.objects import Pipe, PipeEnd

O_PATH = 0o10000000


def check(pipe: Pipe) -> None:
    """Make sure that a named pipe is there, or the directory of a deleted one; raises ResourceChanged."""
    path = Path(pipe.path)
    if not pipe.path or (pipe.deleted and path.parent.is_dir()):
        return
    if pipe.deleted or not path.is_fifo():
        raise ResourceChanged(f"there is no named pipe {pipe.path}", path=pipe.path, hint="Make it again (mkfifo).")


def restart(pipe: Pipe, ends: Sequence[PipeEnd], making: Making) -> None:
    """Open the ends, with what was in flight; nothing of it may block.

    Raises:
        ResourceChanged: it is missing, or its user may not open it.
        RestartUnsupported: see ``pipe_data.fill``.
    """
    making.act_for(ends[0].objref)
    place = making.broker.hold(_made_again(pipe, making.broker) if pipe.deleted else _found(pipe, ends, making.broker))
    anchor = _opened(place, os.O_RDWR)
    reader = _opened(place, os.O_RDONLY)
    try:
        if not readable(anchor):
            fill(anchor, pipe, making.plan.parts(PipeData, pipe.objref))
        elif pipe.data_bytes:
            making.notes.append(f"the named pipe {pipe.path} is open in another process and keeps what is in it now")
        waiting = [end for end in ends if end.flags & os.O_ACCMODE == os.O_RDONLY and not end.hung_up]
        for end in (end for end in ends if end not in waiting):
            making.add(end.objref, _opened(place, end.flags & os.O_ACCMODE))
    finally:
        os.close(anchor)
    for end in waiting:  # without a writer, if there is none but our anchor: these have never seen one
        making.add(end.objref, _opened(place, os.O_RDONLY))
    os.close(reader)


def _opened(place: int, access: int) -> int:
    return os.open(f"/proc/self/fd/{place}", access | os.O_NONBLOCK | os.O_CLOEXEC)


def _made_again(pipe: Pipe, broker: Broker) -> int:
    """Make a named pipe and take its name away; raises ResourceChanged."""
    try:
        with broker.as_the_task():
            name = f"{pipe.path}.crd-{os.getpid()}" if os.path.lexists(pipe.path) else pipe.path
            os.mkfifo(name, 0o600)
            try:
                place = os.open(name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            finally:
                Path(name).unlink()
            Path(f"/proc/self/fd/{place}").chmod(pipe.mode)
            return place
    except OSError as error:
        raise ResourceChanged(f"making the deleted pipe {pipe.path} again: {error.strerror}",
                              path=pipe.path) from error


def _found(pipe: Pipe, ends: Sequence[PipeEnd], broker: Broker) -> int:
    """Return where the pipe is, if it is the one that the task had or if its user may open it as the task had."""
    place = broker.open(pipe.path, O_PATH, (pipe.device, pipe.inode))
    found = os.fstat(place)
    if not stat.S_ISFIFO(found.st_mode):
        raise ResourceChanged(f"{pipe.path} is no longer a named pipe", path=pipe.path)
    if (found.st_dev, found.st_ino) != (pipe.device, pipe.inode):
        for end in ends:
            try:
                with broker.as_the_task():
                    os.close(_opened(place, end.flags & os.O_ACCMODE))
            except OSError as error:
                if error.errno != errno.ENXIO:  # that it has no reader is said to whom it may be open
                    raise ResourceChanged(f"{pipe.path}: {error.strerror}", path=pipe.path) from error
    return os.dup(place)
