"""What /proc says, as values.  The numbers of fields are those of proc_pid_stat(5)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from crd.errors import Obstacle

__all__ = ["CheckReport", "FdInfo", "Lock", "MapEntry", "Obstacle", "PosixTimerEntry", "Process", "Stat", "Status"]

SECCOMP_STRICT, SECCOMP_FILTER = 1, 2
PF_EXITING = 0x00000004
PF_KTHREAD = 0x00200000
END_OF_FILE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Process:
    """A process that was selected; pid and start time together name it for ever.

    Attributes:
        start_time: clock ticks after boot (field 22 of stat).
        uid: its effective uid.
    """

    pid: int
    start_time: int
    comm: str
    uid: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What preflight found.

    Attributes:
        obstacles: the most important first; empty if nothing stands in the way.
        notes: what will not be quite as it was after a restart, a sentence each.
    """

    pid: int
    comm: str
    obstacles: tuple[Obstacle, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stat:
    """/proc/PID/stat or /proc/PID/task/TID/stat; ``fields`` is numbered as in proc(5), from 3 (state) on."""

    comm: str
    state: str
    fields: tuple[str, ...]

    def field(self, number: int) -> int:
        """Return the numeric field of that number."""
        return int(self.fields[number - 3])

    @property
    def parent_pid(self) -> int:
        """Field 4."""
        return self.field(4)

    @property
    def process_group(self) -> int:
        """Field 5."""
        return self.field(5)

    @property
    def session(self) -> int:
        """Field 6."""
        return self.field(6)

    @property
    def terminal(self) -> int:
        """Field 7: device number of the controlling terminal, 0 = none."""
        return self.field(7)

    @property
    def foreground(self) -> int:
        """Field 8: the process group in the foreground of that terminal, -1 = none."""
        return self.field(8)

    @property
    def is_exiting(self) -> bool:
        """PF_EXITING in the flags, field 9: it gives back its files, paths and memory, or has done so."""
        return bool(self.field(9) & PF_EXITING)

    @property
    def is_kernel_thread(self) -> bool:
        """PF_KTHREAD in the flags, field 9."""
        return bool(self.field(9) & PF_KTHREAD)

    @property
    def start_time(self) -> int:
        """Field 22: clock ticks after boot; with the pid it names a process for ever."""
        return self.field(22)

    @property
    def exit_signal(self) -> int:
        """Field 38: what the parent is sent when it dies."""
        return self.field(38)

    @property
    def exit_code(self) -> int:
        """Field 52: wait status of a zombie; of a stopped process the signal, until its parent has waited for it."""
        return self.field(52)


class Status(dict[str, str]):
    """/proc/PID/status or /proc/PID/task/TID/status by key, and what is in it as numbers."""

    def numbers(self, key: str, base: int = 10) -> tuple[int, ...]:
        """Return a line of numbers."""
        return tuple(int(word, base) for word in self[key].split())

    @property
    def comm(self) -> str:
        """The name, in which the kernel has escaped newlines and backslashes."""
        return self["Name"].replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")

    @property
    def state(self) -> str:
        """One letter: R running, S sleeping, D in an uninterruptible wait, T stopped, t traced, Z zombie, X dead."""
        return self["State"][:1]

    @property
    def process_id(self) -> int:
        """Tgid."""
        return int(self["Tgid"])

    @property
    def tracer_pid(self) -> int:
        """Who traces it; 0 = nobody."""
        return int(self["TracerPid"])

    @property
    def uids(self) -> tuple[int, ...]:
        """Real, effective, saved, file system."""
        return self.numbers("Uid")

    @property
    def gids(self) -> tuple[int, ...]:
        """Real, effective, saved, file system."""
        return self.numbers("Gid")

    @property
    def groups(self) -> tuple[int, ...]:
        """Supplementary groups."""
        return self.numbers("Groups")

    @property
    def seccomp(self) -> int:
        """0 off, SECCOMP_STRICT or SECCOMP_FILTER."""
        return int(self.get("Seccomp", "0"))

    @property
    def no_new_privileges(self) -> bool:
        """PR_SET_NO_NEW_PRIVS."""
        return self.get("NoNewPrivs") == "1"

    @property
    def umask(self) -> int:
        """The file mode creation mask."""
        return int(self["Umask"], 8)

    def capabilities(self, letter_set: str) -> int:
        """Return one of the sets: Inh, Prm, Eff, Bnd, Amb."""
        return int(self["Cap" + letter_set], 16)

    def signals(self, key: str) -> int:
        """Return a set of signals, bit 0 = signal 1: SigPnd, ShdPnd, SigBlk, SigIgn, SigCgt."""
        return int(self[key], 16)


@dataclass(frozen=True, slots=True)
class MapEntry:
    """A line of maps: [start, end), permissions such as "rw-p", the offset in bytes, and the file or name."""

    start: int
    end: int
    permissions: str
    offset: int
    device: int
    inode: int
    path: str

    @property
    def protection(self) -> int:
        """PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4."""
        return sum(1 << index for index in range(3) if self.permissions[index] != "-")

    @property
    def shared(self) -> bool:
        """MAP_SHARED."""
        return self.permissions[3] == "s"

    @property
    def is_file(self) -> bool:
        """Whether a file system object is mapped, be it one without a name."""
        return self.inode != 0

    @property
    def deleted(self) -> bool:
        """Whether the kernel says the file has no name any more; a file may also be called so."""
        return self.path.endswith(" (deleted)")


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock line of fdinfo: POSIX, FLOCK, OFDLCK or LEASE; the range is inclusive, end 2**63-1 is EOF.

    ``breaking``: another process waits for this lease to be given up.
    """

    kind: str
    exclusive: bool
    pid: int
    start: int
    end: int
    breaking: bool = False


@dataclass(frozen=True, slots=True)
class FdInfo:
    """/proc/PID/fdinfo/FD: the common lines; ``extra`` has the others, such as eventfd-count.

    ``entries`` are the lines, as they stand there, of which there may be many: what epoll and inotify watch.
    """

    position: int
    flags: int
    mount_id: int
    locks: tuple[Lock, ...]
    extra: dict[str, str]
    entries: tuple[str, ...] = ()

    @property
    def close_on_exec(self) -> bool:
        """FD_CLOEXEC of this descriptor."""
        return bool(self.flags & os.O_CLOEXEC)


@dataclass(frozen=True, slots=True)
class PosixTimerEntry:
    """An entry of /proc/PID/timers; ``notify`` is "signal", "none" or "thread", ``tid`` set for SIGEV_THREAD_ID."""

    timer_id: int
    signal: int
    value: int
    notify: str
    tid: int
    clock: int
