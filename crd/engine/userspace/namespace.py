"""A restart in a pid namespace of its own, beside whatever has the image's numbers here.

The restorer runs inside, so every number in the image is right as it stands.  A reaper is the first process; a time
namespace lets the monotonic clock go on where the image was taken.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

from crd.engine.api import RestartResult
from crd.errors import CrdError, FeatureMissing, NativeError, RestartError, TargetError
from crd.native.syscall import NR, syscall
from crd.native.vessel import become_reaper
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crd.engine.userspace.plan import TreePlan
    from crd.image.profile import Profile

_UNSHARE, _MOUNT = 272, 165
_PR_SET_PDEATHSIG = 1
_CLONE_NEWTIME, _CLONE_NEWPID, _CLONE_NEWNS = 0x80, 0x20000000, 0x20000
_MS_NOSUID_NODEV_NOEXEC, _MS_REC_SLAVE = 2 | 4 | 8, 0x4000 | 0x80000
_GO = b"go"


def restart_inside(plan: TreePlan, make: Callable[[Callable[[RestartResult], None]], Any],
                   confirm: Callable[[RestartResult], None] | None) -> RestartResult:
    """Run ``make`` inside new namespaces, and ``confirm`` here.

    Args:
        plan: of the image: its clocks, and its numbers, none of which the restorer may have.
        make: makes the tasks; calls what it is given when all is ready and nothing runs yet.
        confirm: called then, with the numbers as seen from here.

    Returns:
        The result.  The reaper is our child; it exits when the last task has, as the first one did.

    Raises:
        FeatureMissing: these privileges do not allow namespaces.
        CrdError: what ``make`` raised; nothing is left.
    """
    ours, reaper = _entered(plan, _mount_proc, partial(_restore, make=make))
    with ours:
        ready = _receive(ours)
        if "error" in ready:
            os.waitpid(reaper, 0)
            raise CrdError.from_json(ready)
        ready["root_pid"], ready["start_time"] = _seen_from_here(reaper, ready["root_pid"])
        result = RestartResult(**ready, reaper_pid=reaper)
        if confirm:
            confirm(result)
        ours.sendall(_GO)
        done = _receive(ours)
    if "error" in done:
        raise CrdError.from_json(done)
    return result


def rehearse_inside(plan: TreePlan, enter: Callable[[], None],
                    work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run ``work`` inside new namespaces, and have nothing left of them afterwards, or when we die.

    Args:
        plan: of the image.
        enter: makes more namespaces, and mounts their /proc, as the first process inside.
        work: what is to be done there; its result must fit into JSON.

    Raises:
        CrdError: what any of these raised.
    """
    def enter_for_a_while() -> None:
        syscall(NR.PRCTL, _PR_SET_PDEATHSIG, signal.SIGKILL)
        enter()

    ours, reaper = _entered(plan, enter_for_a_while, partial(_answer, work=work))
    try:
        with ours:
            answer = _receive(ours)
    finally:
        os.kill(reaper, signal.SIGKILL)
        os.waitpid(reaper, 0)  # which ends when everything inside has
    if "error" in answer:
        raise CrdError.from_json(answer)
    return answer


def _entered(plan: TreePlan, enter: Callable[[], None],
             work: Callable[[socket.socket], NoReturn]) -> tuple[socket.socket, int]:
    """Make the first process of new namespaces, and have a child of it do the work; return a line to that, and its pid.

    Raises:
        FeatureMissing: these privileges do not allow namespaces.
    """
    _leave(plan.root.profile)
    ours, theirs = socket.socketpair()
    reaper = os.fork()
    if reaper == 0:
        ours.close()  # or the restorer would not see us die
        _begin_inside(theirs, plan, enter, work)
    theirs.close()
    return ours, reaper


def _leave(profile: Profile) -> None:
    """Prepare the namespaces for our next child."""
    try:
        syscall(_UNSHARE, _CLONE_NEWTIME | _CLONE_NEWPID)
    except NativeError as error:
        raise FeatureMissing(f"a namespace of its own: {error.message}", hint="Run as root.") from error
    lines = []
    for name, clock, then in (("monotonic", time.CLOCK_MONOTONIC, profile.taken_monotonic_ns),
                              ("boottime", time.CLOCK_BOOTTIME, profile.taken_boottime_ns)):
        seconds, nanoseconds = divmod(then - time.clock_gettime_ns(clock), 10**9)
        lines.append(f"{name} {seconds} {nanoseconds}\n")
    try:
        fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, "".join(lines).encode())
        os.close(fd)
    except OSError as error:
        raise RestartError(f"setting the clocks of the time namespace: {error.strerror}") from error


def _mount_proc() -> None:
    syscall(_UNSHARE, _CLONE_NEWNS)
    syscall(_MOUNT, b"none\0", b"/\0", 0, _MS_REC_SLAVE, 0)
    syscall(_MOUNT, b"proc\0", b"/proc\0", b"proc\0", _MS_NOSUID_NODEV_NOEXEC, 0)


def _begin_inside(channel: socket.socket, plan: TreePlan, enter: Callable[[], None],
                  work: Callable[[socket.socket], NoReturn]) -> None:
    """As the first process of the namespace: have its /proc, start the restorer, and only reap from then on."""
    try:
        enter()
        with suppress(OSError):
            fd = os.open("/proc/sys/kernel/ns_last_pid", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, str(_free_number(plan) - 1).encode())
            os.close(fd)
        if os.fork() == 0:
            work(channel)
        channel.close()
        _close_inherited()
        become_reaper(plan.root.pid)
    except CrdError as error:
        with suppress(OSError):
            _send(channel, error.to_json())
    finally:
        os._exit(1)


def _free_number(plan: TreePlan) -> int:
    """Return a number that the image has not, above its own where there is room."""
    taken = plan.numbers
    last = procfs.number("sys", "kernel/pid_max") - 1
    wanted: Iterable[int] = chain(range(max(taken) + 100, last), range(last, 1, -1))
    return next(number for number in wanted if number not in taken)


def _answer(channel: socket.socket, work: Callable[[], dict[str, Any]]) -> NoReturn:
    try:
        _send(channel, work())
    except CrdError as error:
        with suppress(OSError):
            _send(channel, error.to_json())
    finally:
        os._exit(1)


def _restore(channel: socket.socket, make: Callable[..., Any]) -> NoReturn:
    def confirm(result: RestartResult) -> None:
        _send(channel, {key: value for key, value in asdict(result).items() if key != "reaper_pid"})
        if channel.recv(len(_GO)) != _GO:
            raise RestartError("the restart was called off")

    status = 1
    try:
        make(confirm)
        _send(channel, {})
        status = 0
    except CrdError as error:
        with suppress(OSError):
            _send(channel, error.to_json())
    finally:
        os._exit(status)


def _close_inherited() -> None:
    """Let the reaper hold nothing open for as long as the tasks live."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.closerange(3, 4096)


def _send(channel: socket.socket, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    channel.sendall(struct.pack("<I", len(data)) + data)


def _receive(channel: socket.socket) -> dict[str, Any]:
    header = _exactly(channel, 4)
    value: dict[str, Any] = json.loads(_exactly(channel, int.from_bytes(header, "little")))
    if "pids" in value:
        value["notes"], value["listeners"], value["terminals"] = tuple(value["notes"]), (), ()
        value["pids"] = {int(old): new for old, new in value["pids"].items()}
    return value


def _exactly(channel: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = channel.recv(length - len(data))
        if not part:
            raise RestartError("the restorer inside the namespace died")
        data += part
    return data


def _seen_from_here(reaper: int, pid: int) -> tuple[int, int]:
    """Return pid and start time, in our own namespaces, of a process inside."""
    inside = os.stat(f"/proc/{reaper}/ns/pid").st_ino
    for candidate in procfs.pids():
        with suppress(TargetError, OSError):
            if (os.stat(f"/proc/{candidate}/ns/pid").st_ino == inside
                    and procfs.status(candidate)["NSpid"].split()[-1] == str(pid)):
                return candidate, procfs.stat(candidate).start_time
    raise RestartError(f"process {pid} of the new namespace cannot be found")

