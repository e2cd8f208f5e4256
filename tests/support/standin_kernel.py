"""A stand-in for a Linux-CR kernel: answers a program's real system calls by seccomp user notification.

The program makes ``syscall(2)`` with the numbers of a release; a filter hands them to a thread here, which sees the
registers as the kernel would, takes the descriptors from the caller, and behaves as the specification says (sections
1, 5 and 8).  A checkpoint writes an image of the right generation with the target's names and pids, nothing else of it.
A restart replaces the callers, once all tasks of the image have called: each becomes a program that has no
descriptors and the name that the image says, and waits for a signal.  Of gen-D a coordinator has to call as well, whose
child is the root: all that descend from that one, and no other, must call, and be in the process groups of the image.

seccomp_unotify(2); numbers of ioctls from linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import pickle
import select
import socket
import struct
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from crd.engine.kernel.proof import RunningKernel
from crd.engine.kernel.table import GHOST, TASK_SELF
from crd.image.inspect import inspect
from crd.native import tracee
from crd.native.syscall import NR, pidfd_getfd, syscall
from tests.support.linux_cr import GenB, GenD, padded

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.engine.kernel.table import CallNumbers
    from crd.image.inspection import TaskEntry

_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 317, 1, 1 << 3, 1 << 5
_RECV, _SEND, _NOTIF_BYTES = 0xC0502100, 0xC0182101, 80
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_PR_SET_NO_NEW_PRIVS = 38
_FREEZER = Path("/sys/fs/cgroup/freezer")


def listen(numbers: tuple[int, int]) -> int:
    """Put the calling process and all that it forks under a filter; return the listener."""
    def instruction(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, jump_true, jump_false, value)

    program = b"".join([instruction(0x20, 0, 0, 0),  # the number
                        instruction(0x15, 2, 0, numbers[0]), instruction(0x15, 1, 0, numbers[1]),
                        instruction(0x06, 0, 0, _RET_ALLOW), instruction(0x06, 0, 0, _RET_USER_NOTIF)])
    code = ctypes.create_string_buffer(program)
    header = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    syscall(NR.PRCTL, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, header)


@dataclass(frozen=True)
class Task:
    """Who a caller is at the moment of its call (proc(5))."""

    pid: int
    process: int
    parent: int
    process_group: int
    session: int

    @classmethod
    def of(cls, tid: int) -> Task:
        fields = Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()
        return cls(tid, _process(tid), *map(int, fields[1:4]))


@dataclass(frozen=True)
class Call:
    """What a caller's registers held."""

    token: int
    tid: int
    number: int
    words: tuple[int, ...]
    task: Task

    def int32(self, index: int) -> int:
        return ctypes.c_int32(self.words[index] & 0xFFFFFFFF).value


@dataclass
class StandInKernel:
    """A context manager; ``run`` runs a function in a process that has this kernel.

    Attributes:
        numbers: of its calls.
        seen: every call, in order.
        image_read: what the last restart was given.
        version: that its images tell.
        refuse: errno that every call gets, instead of an answer.
        restored: answer a checkpoint by 0, as in the copy that has just been restarted.
        names_only: restart as patch 04 alone does.
        hangs: never answer a checkpoint, nor, after it has read the header, a restart.
        kills: end whoever calls restart, as kernels do that have lost the old memory when they meet an error.
        zombies: which tasks of the image end as they are restored: 0 is the first.
        at_checkpoint: called with a target's pid while the caller waits.
    """

    numbers: CallNumbers
    seen: list[Call] = field(default_factory=list)
    image_read: bytes = b""
    version: str = field(default_factory=lambda: RunningKernel().numbers)
    refuse: int = 0
    restored: bool = False
    names_only: bool = False
    hangs: bool = False
    kills: bool = False
    zombies: frozenset[int] = frozenset()
    at_checkpoint: Callable[[int], None] | None = None
    error: str = ""
    crid: int = 0
    _restarts: list[Call] = field(default_factory=list)

    def run(self, function: Callable[[], Any]) -> Any:
        """Run a function in a process of its own; return what it returns, or raise what it raises."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        result_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            self._be_the_program(theirs, write_end, function)
        os.close(write_end)
        theirs.close()
        _, [listener], *_ = socket.recv_fds(ours, 1, 1)
        stop = os.eventfd(0)
        thread = threading.Thread(target=self._serve, args=(listener, stop))
        thread.start()
        try:
            with open(result_end, "rb") as result:
                data = result.read()
            os.waitpid(child, 0)
        finally:
            os.eventfd_write(stop, 1)
            thread.join()
            ours.close()
            os.close(stop)
        assert not self.error, self.error
        worked, value = pickle.loads(data)
        if not worked:
            raise value
        return value

    def _be_the_program(self, theirs: socket.socket, write_end: int, function: Callable[[], Any]) -> None:
        try:
            listener = listen((self.numbers.checkpoint, self.numbers.restart))
            socket.send_fds(theirs, [b"+"], [listener])
            os.close(listener)
            theirs.close()
            try:
                outcome = True, function()
            except BaseException as error:  # noqa: BLE001
                outcome = False, error
            os.write(write_end, pickle.dumps(outcome))
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(0)

    # --- the kernel's side ----------------------------------------------------------------------

    def _serve(self, listener: int, stop: int) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(stop, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if listener in ready and ready[listener] & select.POLLIN:
                self._answer(listener)
            elif stop in ready:
                break
            else:
                poll.unregister(listener)  # the last process under the filter has ended
        os.close(listener)

    def _answer(self, listener: int) -> None:
        notification = bytearray(_NOTIF_BYTES)
        try:
            fcntl.ioctl(listener, _RECV, notification)
        except OSError:
            return  # the caller was killed
        token, tid, _, number, _, _, *words = struct.unpack("=QIIiIQ6Q", notification)
        call = Call(token, tid, number, tuple(words), Task.of(tid))
        self.seen.append(call)
        try:
            if number == self.numbers.restart:
                self._on_restart(listener, call)
            elif not self._hangs_at(call):
                self._reply(listener, call, self._on_checkpoint(call))
        except OSError as error:
            self._reply(listener, call, -(error.errno or errno.EIO))
        except BaseException:  # noqa: BLE001  the test must know
            self.error = traceback.format_exc()
            self._reply(listener, call, -errno.ENOSYS)

    def _reply(self, listener: int, call: Call, value: int) -> None:
        answer = struct.pack("=QqiI", call.token, max(value, 0), min(value, 0), 0)
        with suppress(FileNotFoundError):  # the caller was killed
            fcntl.ioctl(listener, _SEND, answer)

    def _fd(self, call: Call, index: int, mode: int) -> int:
        pidfd = os.pidfd_open(_process(call.tid))
        try:
            fd = pidfd_getfd(pidfd, call.int32(index))
        except Exception as error:
            raise OSError(errno.EBADF, "no such descriptor") from error
        finally:
            os.close(pidfd)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE not in {mode, os.O_RDWR}:
            os.close(fd)
            raise OSError(errno.EBADF, "not open for that")
        return fd

    def _hangs_at(self, call: Call) -> bool:
        if self.at_checkpoint:
            self.at_checkpoint(call.int32(0))
        return self.hangs

    def _on_checkpoint(self, call: Call) -> int:
        if self.refuse:
            return -self.refuse
        if call.words[2] & ~self.numbers.checkpoint_flags:
            return -errno.EINVAL
        pid = call.int32(0)
        fd = self._fd(call, 1, os.O_WRONLY)
        try:
            if not Path(f"/proc/{pid}").exists():
                return -errno.ESRCH
            if pid != call.tid and not _is_frozen(pid):
                return -errno.EBUSY
            if self.restored:
                return 0
            _write(fd, self.image(pid))
        finally:
            os.close(fd)
        self.crid += 1
        return self.crid

    def image(self, *pids: int) -> bytes:
        """An image of tasks, of which the first is the parent of the others."""
        if self.numbers.coordinated:
            return self.image_of(*((pid, pids[0] if index else 1, pid, pid, pid, 0) for index, pid in enumerate(pids)))
        return self.image_of(*((pid, pid, pids[0] if index else 1, 0) for index, pid in enumerate(pids)))

    def image_of(self, *entries: tuple[int, ...], writer: GenB | None = None) -> bytes:
        """An image with a pid array."""
        writer = writer or (GenD if self.numbers.coordinated else GenB)()
        writer.version = (*map(int, self.version.split(".")), writer.version[3])
        writer.machine, writer.has_xsave, writer.word = b"x86_64", "xsave" in RunningKernel().processor_flags, "Q"
        first = Path(f"/proc/{entries[0][0]}/comm")
        comm = first.read_bytes().strip() if first.exists() else b"restored"
        tasks = b"".join(writer.task(entry[0], objects_known=bool(index)) for index, entry in enumerate(entries))
        whole = writer.head() + writer.head_arch() + writer.tree(*entries) + tasks + writer.tail()
        return whole.replace(padded(b"self", 16), padded(comm[:15], 16))

    def _on_restart(self, listener: int, call: Call) -> None:
        """Collect the callers; when all the tasks of the image have called, restore them."""
        self._restarts.append(call)
        flags = call.words[2]
        if self.refuse and not self.numbers.coordinated:
            self._reply(listener, call, -self.refuse)
        elif self.kills:
            os.kill(call.tid, SIGKILL)
        elif self.hangs:
            os.lseek(self._take_image(call)[1], 48, os.SEEK_SET)
        elif self.numbers.coordinated and not flags & TASK_SELF:
            self._coordinate(listener)
        else:
            self._restart_together(listener, call)

    def _restart_together(self, listener: int, call: Call) -> None:
        """As releases before v17 do it, and later ones for a task alone: all call with the pid of the first."""
        root = call.int32(0)
        if not Path(f"/proc/{root}").exists():
            raise OSError(errno.EINVAL, "no such root")
        calls = [waiting for waiting in self._restarts if waiting.int32(0) == root]
        first = next((waiting for waiting in calls if waiting.tid == root), None)
        if not first:
            return
        data, image_fd = self._take_image(first)
        image = inspect(io.BytesIO(data))
        if image.broken:
            number = errno.EPIPE if image.broken.error == "image.truncated" else errno.EINVAL
            for waiting in calls:
                self._reply(listener, waiting, -(number if waiting is first else errno.EAGAIN))
        elif {waiting.tid for waiting in calls} >= {task.pid for task in image.tasks}:
            os.lseek(image_fd, image.image_bytes, os.SEEK_CUR)
            self._restarts.clear()
            for task in image.tasks:
                waiting = next(waiting for waiting in calls if waiting.tid == task.pid)
                _check_place(task, waiting.task)
                if self.names_only:
                    self._reply(listener, waiting, 0)
                else:
                    self._become(listener, waiting, task.comm.encode())
        os.close(image_fd)

    def _coordinate(self, listener: int) -> None:
        """As releases from v17 on do it."""
        coordinator = next((call for call in self._restarts if call.int32(0)), None)
        if not coordinator:
            return
        root = coordinator.int32(0)
        if self.refuse or Task.of(root).parent != coordinator.task.process:
            self._give_up(listener, coordinator, self.refuse or errno.ESRCH)
            return
        calls = {call.tid: call for call in self._restarts if call is not coordinator}
        tasks, ghosts = _descendants(root), {tid for tid, call in calls.items() if call.words[2] & GHOST}
        if calls.keys() < tasks:
            return  # the kernel waits for the others
        data, image_fd = self._take_image(coordinator)
        image = inspect(io.BytesIO(data))
        assert not image.broken, image.broken
        if tasks - ghosts != {task.pid for task in image.tasks}:
            self._give_up(listener, coordinator, errno.ESRCH)
            return
        os.lseek(image_fd, image.image_bytes, os.SEEK_CUR)
        os.close(image_fd)
        self._restarts.clear()
        for index, task in enumerate(image.tasks):
            _check_place(task, calls[task.pid or 0].task)
            self._become(listener, calls[task.pid or 0], task.comm.encode(), ends=index in self.zombies)
        for tid in ghosts:
            self._become(listener, calls[tid], b"ghost", ends=True)
        self._reply(listener, coordinator, 0)

    def _give_up(self, listener: int, coordinator: Call, number: int) -> None:
        """What is half restored is killed; the coordinator learns why."""
        for waiting in self._restarts:
            if waiting is not coordinator:
                with suppress(ProcessLookupError):
                    os.kill(waiting.task.process, SIGKILL)
        self._reply(listener, coordinator, -number)

    def _take_image(self, call: Call) -> tuple[bytes, int]:
        """Return what is left of the image, and a descriptor that shares the caller's position in it."""
        fd = self._fd(call, 1, os.O_RDONLY)
        self.image_read = os.pread(fd, os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_CUR))
        return self.image_read, fd

    def _become(self, listener: int, call: Call, comm: bytes, *, ends: bool = False) -> None:
        """Make a caller another program before it sees an answer: seize first, then answer."""
        tracee.seize(call.tid)
        tracee.interrupt(call.tid)
        self._reply(listener, call, 0)
        tracee.wait(call.tid)
        registers = tracee.get_registers(call.tid)
        with open(f"/proc/{call.tid}/mem", "r+b", buffering=0) as memory:
            memory.seek(registers.rip)
            memory.write(_EXIT if ends else _program(comm))
        tracee.detach(call.tid)


_EXIT = b"\x31\xff\xb8\x3c\0\0\0\x0f\x05"
"""exit(0)"""


def _program(comm: bytes) -> bytes:
    """prctl(PR_SET_NAME, comm); close_range(0, ~0, 0); for (;;) pause()."""
    set_name = b"\xb8\x9d\0\0\0\x0f\x05"
    rest = b"\x31\xff\xbe\xff\xff\xff\xff\x31\xd2\xb8\xb4\x01\0\0\x0f\x05" + b"\xb8\x22\0\0\0\x0f\x05\xeb\xf7"
    to_name = struct.pack("<i", len(set_name) + len(rest))
    return b"\xbf\x0f\0\0\0" + b"\x48\x8d\x35" + to_name + set_name + rest + comm + b"\0"


def _check_place(told: TaskEntry, found: Task) -> None:
    """Check that a caller is what the image says of it."""
    assert (told.pid, told.thread_group) == (found.pid, found.process)
    if told.session is not None:
        assert (told.process_group, told.session) == (found.process_group, found.session)


def _descendants(root: int) -> set[int]:
    """Return a process and all that descend from it, with their threads, but for zombies."""
    found: set[int] = set()
    todo = [root]
    while todo:
        pid = todo.pop()
        for directory in Path(f"/proc/{pid}/task").iterdir():
            if (directory / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(int(directory.name))
            todo += map(int, (directory / "children").read_text().split())
    return found


def _process(tid: int) -> int:
    lines = Path(f"/proc/{tid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Tgid:"))


def _is_frozen(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "freezer" in controllers.split(","):
            state = _FREEZER / path.lstrip("/") / "freezer.state"
            return state.exists() and state.read_text().strip() == "FROZEN"
    return False


def _write(fd: int, data: bytes) -> None:
    """As section 5.1: short writes go on, EAGAIN is tried again, what else fails is the call's result."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view):]
        except BlockingIOError:
            select.select([], [fd], [], 1)
