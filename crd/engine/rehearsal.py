"""A restart on trial: a copy of the tasks of an image runs for a moment where it can do no harm."""

from __future__ import annotations

from dataclasses import dataclass

from crd.engine.api import Pids, RestartOptions, Tcp
from crd.errors import CopyFailed, SandboxMissing


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of a process of a copy: its number in the image, its name, what it did, and whether that is bad."""

    pid: int
    comm: str
    what: str
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A copy of tasks that was made, and of which nothing is left.

    Attributes:
        tasks, threads: how many.
        notes: what could not be as it was, a sentence each.
        seen: of each process, if the copy was let run.
        hindrance: why it was not.
    """

    tasks: int
    threads: int
    duration_seconds: float
    notes: tuple[str, ...] = ()
    seen: tuple[Seen, ...] = ()
    hindrance: str = ""


def rehearse(fd: int) -> Rehearsal:
    """Make the tasks of an image in a sandbox, and let them run there for a moment; nothing is left of them.

    Args:
        fd: open for reading; read once, front to back.

    Raises:
        ImageError: the image is damaged.
        SandboxMissing: no sandbox can be made for it.
        RestartError, AccessDenied, FeatureMissing: it cannot be restarted in one.
        CopyFailed: a task did not run on.
    """
    from crd.engine.stream import DescriptorSource
    from crd.engine.userspace.restart import Restart
    from crd.image.cursor import Cursor
    from crd.image.generations import PREFIX_BYTES, is_of_a_kernel

    source = Cursor(DescriptorSource(fd))
    if is_of_a_kernel(source.peek(PREFIX_BYTES)):
        raise SandboxMissing("a Linux-CR kernel restarts no image in namespaces of its own")
    done = Restart(source, RestartOptions(pids=Pids.NAMESPACE, tcp=Tcp.CLOSE)).rehearse()
    if bad := [f"process {one.pid} ({one.comm}) {one.what}" for one in done.seen if one.failed]:
        raise CopyFailed(f"a copy that was let run did not run on: {'; '.join(bad)}")
    return done
