"""/proc/PID, parsed (proc(5)).

Names in it are the target's and hostile: nothing read here may be used as a path without a check by whoever uses it.
Lines are split at newlines alone, since the kernel escapes no other line break of Unicode.

Every function raises ``TargetGone`` if the process (thread, descriptor) is no more, and ``TargetError`` if it may
not be read or is not what proc(5) says.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from crd.errors import TargetError, TargetGone
from crd.target.model import END_OF_FILE, FdInfo, Lock, MapEntry, PosixTimerEntry, Stat, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

__all__ = ["LIMIT_NAMES", "PROC", "FdInfo", "Lock", "MapEntry", "PosixTimerEntry", "Stat", "Status"]

PROC = Path("/proc")
_NO_LIMIT = 2**64 - 1


class asking:  # noqa: N801  (a class, since a generator takes five times as long, and much is asked in a stop)
    """A context in which errors are told as what they mean for a file of a process."""

    __slots__ = ("name", "pid")

    def __init__(self, pid: int | str, name: str) -> None:
        self.pid = pid
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        pid, name = self.pid, self.name
        match error:
            case FileNotFoundError() | ProcessLookupError():
                raise TargetGone(f"process {pid} is gone ({name})", pid=pid) from error
            case OSError():
                raise TargetError(f"/proc/{pid}/{name}: {error.strerror}", pid=pid,
                                  hint="Run crd as root, or as the user of the process.") from error
            case ValueError() | LookupError():
                raise TargetError(f"/proc/{pid}/{name} is not what proc(5) says", pid=pid) from error


def path(pid: int | str, name: str) -> str:
    """Return the name of ``/proc/PID/NAME``, or of ``/proc/PID`` if the name is empty."""
    return f"{PROC}/{pid}/{name}".rstrip("/")


def read(pid: int | str, name: str) -> str:
    """Return the text of ``/proc/PID/NAME``."""
    return read_bytes(pid, name).decode("utf-8", "surrogateescape")


def read_bytes(pid: int | str, name: str) -> bytes:
    """Return the content of ``/proc/PID/NAME``, or of ``/proc/PID`` if the name is empty."""
    with asking(pid, name), open(path(pid, name), "rb", buffering=0) as file:
        return file.read()


def link_stat(pid: int, name: str) -> os.stat_result:
    """Return stat of what ``exe``, ``cwd`` or ``root`` leads to, whatever its name is now."""
    with asking(pid, name):
        return os.stat(path(pid, name))


def read_link(pid: int | str, name: str) -> str:
    """Return where the link ``/proc/PID/NAME`` points."""
    with asking(pid, name):
        return os.readlink(path(pid, name))


def _numbered_entries(pid: int | str, directory: str) -> list[int]:
    with asking(pid, directory):
        return sorted(int(name) for name in os.listdir(path(pid, directory)))


# --- processes and threads -----------------------------------------------------------------------------------


def pids() -> Iterator[int]:
    """Return the processes there are."""
    for name in os.listdir(PROC):
        if name.isdecimal():
            yield int(name)


def stat(pid: int | str) -> Stat:
    """Parse stat; the name may hold anything, parentheses and newlines included."""
    return parsed_stat(pid, read(pid, "stat"))


def parsed_stat(pid: int | str, text: str) -> Stat:
    """Parse the text of a stat file."""
    head, _, tail = text.rpartition(")")
    with asking(pid, "stat"):
        fields = tuple(tail.split())
        return Stat(comm=head[head.index("(") + 1:], state=fields[0], fields=fields)


def status(pid: int | str) -> Status:
    """Parse status into its lines: key and value, both without blanks around."""
    return parsed_status(read(pid, "status"))


def parsed_status(text: str) -> Status:
    """Parse the text of a status file; the name stays as it is there."""
    lines = (line.partition(":") for line in text.split("\n")[:-1])
    return Status((key, value[1:] if key == "Name" else value.strip(" \t")) for key, _, value in lines)


def threads(pid: int) -> list[int]:
    """Return the tids of a process in ascending order, as they are at this moment."""
    return _numbered_entries(pid, "task")


def n_threads(pid: int) -> int:
    """Return how many threads a process has, with those that are just ending (proc_task_getattr in fs/proc/base.c)."""
    with asking(pid, "task"):
        return os.stat(path(pid, "task")).st_nlink - 2


def children(pid: int, tids: Iterable[int] | None = None) -> list[int]:
    """Return the children of all threads, or of some; exact only while these are stopped (proc_tid_children(5))."""
    words: list[str] = []
    for tid in threads(pid) if tids is None else tids:
        with suppress(TargetGone):  # a thread that has ended has none
            words += read(pid, f"task/{tid}/children").split()
    with asking(pid, "children"):
        return sorted(int(word) for word in words)


def command_line(pid: int) -> list[str]:
    """Return the arguments as the process shows them now."""
    return _words(read(pid, "cmdline"))


def environment(pid: int) -> list[str]:
    """Return the initial environment, NAME=VALUE each."""
    return _words(read(pid, "environ"))


def _words(text: str) -> list[str]:
    return text.removesuffix("\0").split("\0") if text else []


def number(pid: int | str, name: str) -> int:
    """Return a file that holds one number: oom_score_adj, loginuid, sessionid, timerslack_ns."""
    text = read(pid, name)
    with asking(pid, name):
        return int(text)


def hexadecimal(pid: int | str, name: str) -> int:
    """Return a file that holds one hexadecimal number: coredump_filter, personality."""
    text = read(pid, name)
    with asking(pid, name):
        return int(text, 16)


def namespaces(pid: int | str) -> dict[str, int]:
    """Return the inode number of each namespace by its name in /proc/PID/ns, the ..._for_children ones included.

    A pid namespace for children that has no process yet has no number: it is 0.
    """
    with asking(pid, "ns"):
        directory = path(pid, "ns")
        return {name: _namespace(directory, name) for name in sorted(os.listdir(directory))}


def _namespace(directory: str, name: str) -> int:
    try:
        text = os.readlink(f"{directory}/{name}")
    except FileNotFoundError:
        if name != "pid_for_children":
            raise
        return 0
    return int(text[text.index("[") + 1:-1])


def boot_id() -> str:
    """Return what names this boot, of a container too, which may have the boot id of its host."""
    return str(uuid5(UUID(read("sys", "kernel/random/boot_id").strip()), str(stat(1).start_time)))


def cgroups(pid: int | str) -> dict[str, str]:
    """Return the path in each hierarchy by controllers ("freezer", "cpu,cpuacct", "name=systemd"); v2 is ""."""
    return {controllers: path for _, controllers, path in
            (line.split(":", 2) for line in read(pid, "cgroup").split("\n") if line.count(":") > 1)}


LIMIT_NAMES = ("Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size",
               "Max resident set", "Max processes", "Max open files", "Max locked memory", "Max address space",
               "Max file locks", "Max pending signals", "Max msgqueue size", "Max nice priority",
               "Max realtime priority", "Max realtime timeout")
"""The lines of limits in the order of the RLIMIT_ numbers."""


def limits(pid: int) -> list[tuple[int, int]]:
    """Return soft and hard limit of each resource by number; 2**64-1 is unlimited."""
    found = {}
    lines = read(pid, "limits").split("\n")[1:-1]
    with asking(pid, "limits"):
        for line in lines:
            soft, hard = (_NO_LIMIT if word == "unlimited" else int(word) for word in line[26:].split()[:2])
            found[line[:26].strip()] = (soft, hard)
        return [found[name] for name in LIMIT_NAMES]


def posix_timers(pid: int) -> list[PosixTimerEntry]:
    """Parse /proc/PID/timers (CONFIG_POSIX_TIMERS, CONFIG_CHECKPOINT_RESTORE)."""
    return parsed_posix_timers(pid, read(pid, "timers"))


def parsed_posix_timers(pid: int, text: str) -> list[PosixTimerEntry]:
    """Parse the text of a timers file."""
    entries: list[dict[str, str]] = []
    lines = text.split("\n")[:-1]
    with asking(pid, "timers"):
        for key, _, value in (line.partition(":") for line in lines):
            if key == "ID":
                entries.append({})
            entries[-1][key] = value.strip()
        return [_posix_timer(entry) for entry in entries]


def _posix_timer(entry: dict[str, str]) -> PosixTimerEntry:
    signal, _, value = entry["signal"].partition("/")
    notify, _, who = entry["notify"].partition("/")
    tid = int(who.removeprefix("tid.")) if who.startswith("tid.") else 0
    return PosixTimerEntry(int(entry["ID"]), int(signal), int(value, 16), notify, tid, int(entry["ClockID"]))


# --- memory --------------------------------------------------------------------------------------------------


def maps(pid: int | str) -> list[MapEntry]:
    """Parse maps; empty for a zombie leader, whose threads have to be asked instead."""
    return parsed_maps(pid, read(pid, "maps"))


def parsed_maps(pid: int | str, text: str) -> list[MapEntry]:
    """Parse the text of the maps of a process."""
    with asking(pid, "maps"):
        return [_map_entry(line) for line in text.split("\n")[:-1]]


def _map_entry(line: str) -> MapEntry:
    addresses, permissions, offset, device, inode, *path = line.split(maxsplit=5)
    start, end = addresses.split("-")
    major, minor = device.split(":")
    return MapEntry(int(start, 16), int(end, 16), permissions, int(offset, 16),
                    os.makedev(int(major, 16), int(minor, 16)), int(inode), unescape(path[0]) if path else "")


def unescape(path: str) -> str:
    r"""Undo the one escape of maps, \012.  A name that holds this text reads the same: map_file_link is exact."""
    return path.replace("\\012", "\n")


def map_file_link(pid: int | str, entry: MapEntry) -> str:
    """Return the exact name of the mapped file; needs CAP_CHECKPOINT_RESTORE (proc_pid_map_files(5))."""
    return read_link(pid, f"map_files/{entry.start:x}-{entry.end:x}")


def map_file_stat(pid: int | str, entry: MapEntry) -> os.stat_result:
    """Return fstat of the mapped file, whatever its name is now; needs CAP_CHECKPOINT_RESTORE."""
    name = f"map_files/{entry.start:x}-{entry.end:x}"
    with asking(pid, name):
        return os.stat(path(pid, name))


def vm_flags(pid: int | str) -> dict[int, str]:
    """Return the VmFlags of smaps by start address, but for "uw", and with "pk".  Dear: it walks all pages.

    The one is of areas whose writes are noted, as crd does (``crd.native.tracking``).  The other is a word of ours, for
    areas that the program has given a protection key (pkeys(7)); what can only be executed has one from the kernel.
    """
    flags: dict[int, str] = {}
    area, *rest = read(pid, "smaps").split("\nVmFlags:")
    with asking(pid, "smaps"):
        for text in rest:
            words, _, following = text.partition("\n")
            addresses, permissions, _ = area.split(" ", 2)
            number = area.partition("\nProtectionKey:")[2].partition("\n")[0].strip()
            key = " pk" if number not in {"", "0"} and not permissions.startswith("--x") else ""
            flags[int(addresses.partition("-")[0], 16)] = words.replace(" uw ", " ").strip() + key
            area = following
    return flags


# --- descriptors ---------------------------------------------------------------------------------------------


def fd_numbers(pid: int | str) -> list[int]:
    """Return the open descriptors, ascending."""
    return _numbered_entries(pid, "fd")


def fd_stat(pid: int, fd: int) -> os.stat_result:
    """Return fstat of an open file."""
    with asking(pid, f"fd/{fd}"):
        return os.stat(path(pid, f"fd/{fd}"))


def fdinfo(pid: int | str, fd: int) -> FdInfo:
    """Parse the information of one descriptor."""
    return parsed_fdinfo(pid, fd, read(pid, f"fdinfo/{fd}"))


def parsed_fdinfo(pid: int | str, fd: int, text: str) -> FdInfo:
    """Parse the text of the information of one descriptor."""
    values: dict[str, str] = {}
    locks = []
    entries = []
    lines = text.split("\n")[:-1]
    with asking(pid, f"fdinfo/{fd}"):
        for line in lines:
            key, _, value = line.partition(":")
            if key == "lock":
                locks.append(_lock(value))
            elif key in {"tfd", "inotify wd"}:
                entries.append(line.strip())
            else:
                values[key] = value.strip()
        return FdInfo(int(values.pop("pos", "0")), int(values.pop("flags", "0"), 8),
                      int(values.pop("mnt_id", "0")), tuple(locks), values, tuple(entries))


def _lock(line: str) -> Lock:
    _number, kind, state, access, pid, _inode, start, end = line.split()
    return Lock(kind, access == "WRITE", int(pid), int(start), END_OF_FILE if end == "EOF" else int(end),
                state == "BREAKING")
