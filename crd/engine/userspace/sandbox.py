"""Where a copy of tasks may run without harm: in namespaces of its own, with all files as they are.

Every file system is seen through an overlay, whose upper layer is memory and ends with the sandbox.  A pipe or socket
with a name is another one when it is found through an overlay: nobody outside is at its other end.  /dev has only what
reaches nobody, /proc and /sys are the sandbox's own, file systems over which nothing can be laid are missing.  The
network has no way out, and all addresses are its own.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crd.errors import FeatureMissing, NativeError, SandboxMissing
from crd.image.objects import RegularFile
from crd.native.syscall import syscall
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from crd.engine.userspace.plan import TreePlan

_UNSHARE, _MOUNT, _UMOUNT2, _PIVOT_ROOT = 272, 165, 166, 155
_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWNET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x40000000)
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_EXEC, _REMOUNT, _BIND, _REC_PRIVATE = 1, 2, 4, 8, 32, 4096, 0x4000 | 0x40000
_MNT_DETACH = 2

_STAGE = "/sys"
"""Where the sandbox is put together: a directory that is always there, and that nobody in it sees as it is here."""
_SHARE_OF_MEMORY = 4
"""All that is written in the sandbox takes no more than this part of the memory that is free."""
_OWN = re.compile(r"/(proc|sys|dev)(/.*)?")
_SHARED_MEMORY = "/dev/shm"  # noqa: S108  the directory of shm_open(3)
_DEVICES = {os.makedev(1, minor) for minor in (3, 5, 7, 8, 9)} | {os.makedev(5, 0), os.makedev(5, 2)}
"""null, zero, full, random, urandom, tty, ptmx."""
_FIXED = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "mtrr")
"""What root can change in /proc that is not of the sandbox alone."""

_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 13, 14, 15, 18, 28, 31))
"""CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_BROADCAST, NET_RAW,
IPC_LOCK, IPC_OWNER, SYS_CHROOT, LEASE, SETFCAP: those by which nothing outside is reached."""
_FIRST_VICTIM = 1000
"""Of the kernel when memory runs short (oom_score_adj)."""

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_NEW_ROUTE, _REQUEST_CREATE, _ERROR = 24, 1 | 4 | 0x400, 2
_LOOPBACK_ROUTE = struct.Struct("<IHHII8BIHHI")
_LOCAL_TABLE, _BY_BOOT, _OF_HOST, _LOCAL, _OUT_INTERFACE, _LOOPBACK = 255, 3, 254, 2, 4, 1


def narrow(tree: TreePlan) -> None:
    """Have the tasks of an image be given nothing by which they could reach what is outside, be they root's."""
    for plan in tree.processes:
        plan.process.oom_score_adj = _FIRST_VICTIM
        for thread in plan.threads:
            for kind in ("inheritable", "permitted", "effective", "bounding", "ambient"):
                setattr(thread.capabilities, kind, getattr(thread.capabilities, kind) & _CAPABILITIES)


def enter(tree: TreePlan) -> None:
    """Move into a new sandbox, as the first process of a new pid namespace, and have the image name its files.

    Args:
        tree: of the image: files that it is to have in writing are copied at once, and where it names files by device
            and inode that are these outside, it names them by what they are inside.

    Raises:
        SandboxMissing: it cannot be made here.
        ResourceChanged: see ``_copy_up``.
    """
    known = [one for one in _named(tree) if one.is_there()]
    lowest_port = procfs.number("sys", "net/ipv4/ip_unprivileged_port_start")
    try:
        syscall(_UNSHARE, _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWNET | _CLONE_NEWCGROUP)
        _enter_files()
        _open_network(lowest_port)
    except (NativeError, OSError) as error:
        raise SandboxMissing(f"no sandbox can be made: {error}") from error
    _copy_up(tree)
    for one in known:
        one.note()


def close_off() -> None:
    """Take away what the tasks must not have when they run, but who makes them needs.

    Raises:
        SandboxMissing: that cannot be done.
    """
    for name in _FIXED:
        path = f"/proc/{name}"
        if os.path.lexists(path):
            _mount(path, path, flags=_BIND)
            _mount(path, path, flags=_REMOUNT | _BIND | _READ_ONLY)


# --- files --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted file system: its number, where it is, and of which type."""

    number: int
    point: str
    kind: str


def _enter_files() -> None:
    _mount("none", "/", flags=_REC_PRIVATE)
    mounts = sorted(filter(_is_visible, _mounts()), key=lambda mount: mount.point.rstrip("/").count("/"))
    _mount("tmpfs", _STAGE, "tmpfs", _NO_SUID | _NO_DEV, f"size={_room_bytes()},mode=0700")
    root = f"{_STAGE}/root"
    Path(root).mkdir()
    for index, mount in enumerate(mounts):
        if mount.point == "/":
            _lay_over(mount, root, index)
    _make_devices(f"{root}/dev")
    for index, mount in enumerate(mounts):
        if mount.point != "/" and (mount.point == _SHARED_MEMORY or not _OWN.fullmatch(mount.point)):
            with suppress(NativeError, OSError):  # then it is missing
                _lay_over(mount, root + mount.point, index)
    _mount("proc", f"{root}/proc", "proc", _NO_SUID | _NO_DEV | _NO_EXEC)
    with suppress(NativeError):
        _mount("sysfs", f"{root}/sys", "sysfs", _READ_ONLY | _NO_SUID | _NO_DEV | _NO_EXEC)
    os.chdir(root)
    with _step("changing the root"):
        syscall(_PIVOT_ROOT, b".\0", b".\0")
        syscall(_UMOUNT2, b".\0", _MNT_DETACH)
    os.chdir("/")


def _mounts() -> Iterator[_Mount]:
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        words, _, rest = line.partition(" - ")
        number, _, _, _, point, *_ = words.split(" ")
        yield _Mount(int(number), re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point), rest.split()[0])


def _is_visible(mount: _Mount) -> bool:
    """Whether no other mount covers it, and it is a directory."""
    try:
        fd = os.open(mount.point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return f"mnt_id:\t{mount.number}\n" in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
    finally:
        os.close(fd)


def _lay_over(mount: _Mount, where: str, index: int) -> None:
    """Mount an overlay of what is mounted somewhere; its path must not be in the options, which know no commas."""
    layers = f"{_STAGE}/{index}"
    for name in ("", "/upper", "/work"):
        Path(layers + name).mkdir()
    found = os.stat(mount.point)
    os.chown(f"{layers}/upper", found.st_uid, found.st_gid)
    Path(f"{layers}/upper").chmod(stat.S_IMODE(found.st_mode))
    os.chdir(mount.point)
    try:
        _mount("overlay", where, "overlay", _NO_SUID | _NO_DEV,
               f"lowerdir=.,upperdir={layers}/upper,workdir={layers}/work")
    finally:
        os.chdir("/")


def _make_devices(where: str) -> None:
    """Make a /dev of those devices by which nobody is reached, with terminals and message queues of its own."""
    _mount("tmpfs", where, "tmpfs", _NO_SUID | _NO_EXEC, "size=1m,mode=0755")
    for entry in os.scandir("/dev"):
        found = entry.stat(follow_symlinks=False)
        path = Path(where, entry.name)
        if stat.S_ISLNK(found.st_mode):
            path.symlink_to(os.readlink(entry))
        elif stat.S_ISCHR(found.st_mode) and found.st_rdev in _DEVICES:
            os.mknod(path, found.st_mode, found.st_rdev)
            path.chmod(stat.S_IMODE(found.st_mode))
        elif f"/dev/{entry.name}" == _SHARED_MEMORY:
            path.mkdir()
            path.chmod(stat.S_IMODE(found.st_mode))
    for name, kind, options in (("pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
                                ("mqueue", "mqueue", "")):
        Path(where, name).mkdir()
        _mount(kind, f"{where}/{name}", kind, _NO_SUID | _NO_EXEC, options)


def _room_bytes() -> int:
    return available_bytes() // _SHARE_OF_MEMORY


def available_bytes() -> int:
    """Return how much memory is free, or could be (MemAvailable of proc_meminfo(5))."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _copy_up(tree: TreePlan) -> None:
    """Have the files copied into memory that the tasks may write to: a descriptor for reading would stay at the old.

    Raises:
        SandboxMissing: there is no room for one.
    """
    for record in tree.root.shared.of(RegularFile):
        if stat.S_ISREG(record.mode) and record.flags & os.O_ACCMODE != os.O_RDONLY:
            try:
                os.close(os.open(record.path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
            except FileNotFoundError:
                pass  # or it is made again, or missed
            except OSError as error:
                raise SandboxMissing(f"{record.path} cannot be copied into a sandbox: {error.strerror}",
                                     path=record.path) from error


# --- what is which file -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Name:
    """A file that a record of the image names by path, device and inode."""

    record: Any
    path: str
    prefix: str

    def is_there(self) -> bool:
        """Whether the path leads to the very file."""
        try:
            found = os.stat(self.path)
        except (OSError, ValueError):
            return False
        return (found.st_dev, found.st_ino) == (getattr(self.record, f"{self.prefix}device"),
                                                getattr(self.record, f"{self.prefix}inode"))

    def note(self) -> None:
        """Have the record name what is there now."""
        with suppress(OSError):
            found = os.stat(self.path)
            setattr(self.record, f"{self.prefix}device", found.st_dev)
            setattr(self.record, f"{self.prefix}inode", found.st_ino)


def _named(tree: TreePlan) -> Iterator[_Name]:
    for kind, records in tree.root.shared.records.items():
        if {"path", "device", "inode"} <= kind.fields.keys():
            yield from (_Name(record, record.path, "") for record in records)
    yield from (_Name(plan.process, plan.process.exe, "exe_") for plan in tree.processes)


# --- network ------------------------------------------------------------------------------------------


def _open_network(lowest_port: int) -> None:
    """Bring up the loopback interface, and have all addresses lead there; ports below this one are root's."""
    with socket.socket() as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text(str(lowest_port), encoding="ascii")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        for family in (socket.AF_INET, socket.AF_INET6):
            sock.send(_LOOPBACK_ROUTE.pack(
                _LOOPBACK_ROUTE.size, _NEW_ROUTE, _REQUEST_CREATE, 0, 0, family, 0, 0, 0, _LOCAL_TABLE, _BY_BOOT,
                _OF_HOST, _LOCAL, 0, 8, _OUT_INTERFACE, _LOOPBACK))
            _, kind, _, _, _, number = struct.unpack_from("<IHHIIi", sock.recv(4096))
            if number and family == socket.AF_INET:  # a kernel may have no IPv6
                raise OSError(-number, os.strerror(-number))
            assert kind == _ERROR  # noqa: S101  that is how the kernel acknowledges


# --- calls --------------------------------------------------------------------------------------------


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    with _step(f"mounting {source} on {target}"):
        syscall(_MOUNT, *(os.fsencode(text) + b"\0" for text in (source, target, kind)), flags,
                os.fsencode(options) + b"\0")


@contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except NativeError as error:
        raise FeatureMissing(f"{what}: {os.strerror(error.errno)}") from error
