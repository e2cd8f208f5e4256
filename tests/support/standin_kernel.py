"""A stand-in for a Linux-CR kernel: answers a program's real system calls by seccomp user notification.

The program makes ``syscall(2)`` with the numbers of a release; a filter hands them to a thread here, which sees the
registers as the kernel would, takes the descriptors from the caller, and behaves as the specification says (sections
1, 5 and 8).  A checkpoint writes an image of the right generation with the target's names and pids, nothing else of it.
A restart replaces the callers, once all tasks of the image have called: each becomes a program that has no
descriptors and the name that the image says, and waits for a signal.

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
from typing import TYPE_CHECKING, Any

from crd.image.inspect import inspect
from crd.native import tracee
from crd.native.syscall import NR, pidfd_getfd, syscall
from tests.support.linux_cr import GenB, GenD, padded

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.engine.kernel.table import CallNumbers

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
class Call:
    """What a caller's registers held."""

    token: int
    tid: int
    number: int
    words: tuple[int, ...]

    def int32(self, index: int) -> int:
        return ctypes.c_int32(self.words[index] & 0xFFFFFFFF).value


@dataclass
class StandInKernel:
    """A context manager; ``run`` runs a function in a process that has this kernel.

    Attributes:
        numbers: of its calls.
        seen: every call, in order.
        refuse: errno that every call gets, instead of an answer.
        restored: answer a checkpoint by 0, as in the copy that has just been restarted.
        names_only: restart as patch 04 alone does.
        at_checkpoint: called with the target's pid while the caller waits.
    """

    numbers: CallNumbers
    seen: list[Call] = field(default_factory=list)
    refuse: int = 0
    restored: bool = False
    names_only: bool = False
    at_checkpoint: Callable[[int], None] | None = None
    error: str = ""
    crid: int = 0
    _restarts: dict[int, list[Call]] = field(default_factory=dict)

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
        call = Call(token, tid, number, tuple(words))
        self.seen.append(call)
        try:
            if number == self.numbers.restart:
                self._on_restart(listener, call)
            else:
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
            if self.at_checkpoint:
                self.at_checkpoint(pid)
            _write(fd, self.image(pid))
        finally:
            os.close(fd)
        self.crid += 1
        return self.crid

    def image(self, *pids: int) -> bytes:
        """An image of tasks, of which the first is the parent of the others."""
        writer = (GenD if self.numbers.coordinated else GenB)()
        writer.version = (*map(int, os.uname().release.split("-")[0].split(".")[:3]), 1)
        comm = Path(f"/proc/{pids[0]}/comm").read_bytes().strip() if Path(f"/proc/{pids[0]}").exists() else b"restored"
        if self.numbers.coordinated:
            entries = [(pid, pids[0] if index else 1, pid, pid, pid, 0) for index, pid in enumerate(pids)]
        else:
            entries = [(pid, pid, pids[0] if index else 1, 0) for index, pid in enumerate(pids)]
        tasks = b"".join(writer.task(pid, objects_known=bool(index)) for index, pid in enumerate(pids))
        whole = writer.head() + writer.head_arch() + writer.tree(*entries) + tasks + writer.tail()
        return whole.replace(padded(b"self", 16), padded(comm[:15], 16))

    def _on_restart(self, listener: int, call: Call) -> None:
        """Collect the callers; when all the tasks of the image have called, restore them."""
        root = call.int32(0)
        calls = self._restarts.setdefault(root, [])
        calls.append(call)
        if self.refuse:
            self._reply(listener, call, -self.refuse)
            return
        if not Path(f"/proc/{root}").exists():
            raise OSError(errno.EINVAL, "no such root")
        first = next((waiting for waiting in calls if waiting.tid == root), None)
        if not first:
            return
        fd = self._fd(first, 1, os.O_RDONLY)
        try:
            data = os.pread(fd, os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_CUR))
        finally:
            os.close(fd)
        image = inspect(io.BytesIO(data))
        if image.broken:
            number = errno.EPIPE if image.broken.error == "image.truncated" else errno.EINVAL
            for waiting in calls:
                self._reply(listener, waiting, -(number if waiting is first else errno.EAGAIN))
        elif {waiting.tid for waiting in calls} >= {task.pid for task in image.tasks}:
            for task in image.tasks:
                waiting = next(waiting for waiting in calls if waiting.tid == task.pid)
                if self.names_only:
                    self._reply(listener, waiting, 0)
                else:
                    self._become(listener, waiting, task.comm.encode())

    def _become(self, listener: int, call: Call, comm: bytes) -> None:
        """Make a caller another program before it sees an answer (engine.md H: seize first, then answer)."""
        tracee.seize(call.tid)
        tracee.interrupt(call.tid)
        self._reply(listener, call, 0)
        tracee.wait(call.tid)
        registers = tracee.get_registers(call.tid)
        with open(f"/proc/{call.tid}/mem", "r+b", buffering=0) as memory:
            memory.seek(registers.rip)
            memory.write(_program(comm))
        tracee.detach(call.tid)


def _program(comm: bytes) -> bytes:
    """prctl(PR_SET_NAME, comm); close_range(0, ~0, 0); for (;;) pause()."""
    set_name = b"\xb8\x9d\0\0\0\x0f\x05"
    rest = b"\x31\xff\xbe\xff\xff\xff\xff\x31\xd2\xb8\xb4\x01\0\0\x0f\x05" + b"\xb8\x22\0\0\0\x0f\x05\xeb\xf7"
    to_name = struct.pack("<i", len(set_name) + len(rest))
    return b"\xbf\x0f\0\0\0" + b"\x48\x8d\x35" + to_name + set_name + rest + comm + b"\0"


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
