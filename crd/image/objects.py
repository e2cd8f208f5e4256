"""The records of shared objects: what open file descriptions are open on, and what memory is shared.

An objref numbers each object and each description of it.  What is in an object follows it in records of its own.
"""

from __future__ import annotations

from crd.image.codec import Record
from crd.image.fields import S32, S64, U8, U16, U32, U64, Bytes, Items, Text  # noqa: TC001  # evaluated when the classes are made
from crd.image.journal import JournalConnection
from crd.image.owner import Owner  # noqa: TC001
from crd.image.posix_queue import PosixQueue, PosixQueueMessage, PosixQueueOpen
from crd.image.sockets import MulticastGroup, NetlinkSocket, SocketFilter, SocketOption
from crd.image.sysv import SysvMemory, SysvMessage, SysvQueue, SysvSemaphores


class RegularFile(Record, type=0x43520010):
    """One open file description, or one mapped file, of a regular file, directory or memory device."""

    objref: U32
    path: Text
    mode: U32  # st_mode
    device: U64
    rdev: U64
    inode: U64
    size: U64
    mtime_ns: S64
    ctime_ns: S64
    flags: U32  # F_GETFL; 0 for a file that is only mapped
    position: U64
    owner: Owner
    mapped: U8  # a mapping needs it: the content must be what it was
    build_id: Bytes  # of an ELF file that is mapped executable, or empty


class Pipe(Record, type=0x43520011):
    """A pipe, its data in PIPE_DATA records behind it; without a name it has both ends inside the image."""

    objref: U32
    inode: U64
    capacity_bytes: U32
    data_bytes: U32
    path: Text  # "" = without a name
    device: U64
    mode: U32  # permission bits
    deleted: U8  # it had that name


class PipeData(Record, type=0x43520012):
    """Bytes in flight, one packet each for a pipe in packet mode, else up to 64 KiB."""

    objref: U32
    packet: U8
    data: Bytes


class PipeEnd(Record, type=0x43520013):
    """One open file description of a pipe."""

    objref: U32
    pipe: U32  # objref of the PIPE
    flags: U32  # F_GETFL
    owner: Owner
    hung_up: U8  # a reader that has seen a writer, and has none now


class SharedMemory(Record, type=0x43520014):
    """Anonymous shared memory."""

    objref: U32
    bytes: U64


class EventFd(Record, type=0x43520040):
    """eventfd(2)."""

    objref: U32
    flags: U32  # F_GETFL
    owner: Owner
    count: U64
    semaphore: U8  # EFD_SEMAPHORE


class TimerFd(Record, type=0x43520041):
    """timerfd_create(2) and timerfd_settime(2)."""

    objref: U32
    flags: U32  # F_GETFL
    owner: Owner
    clock: U32  # CLOCK_*
    set_flags: U32  # TFD_TIMER_*
    ticks: U64  # expirations that nobody has read
    value_ns: U64  # what is left, 0 = disarmed
    interval_ns: U64
    taken_realtime_ns: U64  # CLOCK_REALTIME when that was left


class SignalFd(Record, type=0x43520042):
    """signalfd(2)."""

    objref: U32
    flags: U32  # F_GETFL
    owner: Owner
    mask: U64  # signal 1 is bit 0


class Epoll(Record, type=0x43520043):
    """epoll_create(2); what it watches is among the records of the task."""

    objref: U32
    flags: U32  # F_GETFL
    owner: Owner


class Inotify(Record, type=0x43520044):
    """inotify_init(2); its INOTIFY_WATCHes follow."""

    objref: U32
    flags: U32  # F_GETFL
    owner: Owner


class InotifyWatch(Record, type=0x43520045):
    """inotify_add_watch(2)."""

    objref: U32
    wd: U32
    path: Text
    device: U64  # st_dev
    inode: U64  # st_ino
    mask: U32


class PidFd(Record, type=0x43520046):
    """pidfd_open(2)."""

    objref: U32
    flags: U32  # F_GETFL
    owner: Owner
    pid: S32  # -1 = has ended


UNNAMED_MEMORY = 1
UNNAMED_FILE = 2
UNNAMED_TEMPORARY = 3
UNNAMED_DIRECTORY = 4
UNNAMED_SHARED = 5
UNNAMED_HUGE = 6


class UnnamedFile(Record, type=0x43520047):
    """A file that no name leads to, or shared memory that has one; its content is in SHARED_PAGES."""

    objref: U32
    kind: U32  # UNNAMED_*
    path: Text  # that it had; of memory: its name; of shared memory: that it has
    mode: U32  # permission bits
    uid: U32
    gid: U32
    size: U64
    mtime_ns: S64
    seals: U32  # F_GET_SEALS


class UnnamedOpen(Record, type=0x43520048):
    """One open file description of such a file."""

    objref: U32
    file: U32  # objref of the UNNAMED_FILE
    flags: U32  # F_GETFL
    owner: Owner
    position: U64


UNIX_IDLE = 0
UNIX_LISTENING = 1
UNIX_CONNECTED = 2
UNIX_HUNG_UP = 3
UNIX_RESET = 4
MESSAGE_BYTES_MAX = 1 << 20
UNIX_NAME_BYTES_MAX = 108
RIGHTS_MAX = 253
"""SCM_MAX_FD."""


class UnixSocket(Record, type=0x43520049):
    """A unix socket."""

    objref: U32
    flags: U32  # F_GETFL
    owner: Owner
    kind: U32  # SOCK_*
    state: U32  # UNIX_*
    name: Bytes  # sun_path; abstract ones begin with a NUL
    path: Text  # of the file that has the name, "" = none
    device: U64
    inode: U64
    mode: U32
    deleted: U8  # the file was
    target: Bytes  # name of where datagrams go
    backlog: U32
    shutdown: U32  # 1 receiving, 2 sending
    peer_pid: U32  # SO_PEERCRED
    peer_uid: U32
    peer_gid: U32
    options: Items[SocketOption]


class UnixConnection(Record, type=0x4352004A):
    """Two unix sockets that are connected."""

    client: U32  # objref
    accepted: U32  # objref
    listener: U32  # objref of whose name the accepted one has, 0 = none


class UnixMessage(Record, type=0x4352004B):
    """What waits in the receive queue of a unix socket, in order."""

    socket: U32  # objref
    source: Bytes  # name of the sender
    pid: U32  # of the sender, 0 = not told
    uid: U32
    gid: U32
    rights: Items[U32]  # objrefs of the descriptions that it carries
    data: Bytes


class InetSocket(Record, type=0x4352004C):
    """A socket of TCP or UDP."""

    objref: U32
    flags: U32  # F_GETFL
    owner: Owner
    family: U32  # AF_INET or AF_INET6
    kind: U32  # SOCK_STREAM or SOCK_DGRAM
    listening: U8
    shutdown: U8  # its own direction is closed
    backlog: U32
    local_address: Text
    local_port: U32  # 0 = none
    scope: U32  # of a local IPv6 address
    remote_address: Text
    remote_port: U32  # 0 = not connected
    options: Items[SocketOption]


def plain_address(address: str) -> str:
    """Return an address as a socket of the other family shows it: those of IPv4 without ::ffff: (RFC 4291, 2.5.5.2)."""
    return address.removeprefix("::ffff:") if "." in address else address


class InetConnection(Record, type=0x43520050):
    """Two sockets of TCP that are connected."""

    one: U32  # objref
    other: U32  # objref


class OutsideConnection(Record, type=0x43520060):
    """A connection of TCP whose other end is not in the image."""

    socket: U32  # objref
    state: U8  # TCP_* of include/net/tcp_states.h
    send_sequence: U32  # behind all that was written, its end included
    receive_sequence: U32  # behind all that was received, its end included
    unsent_bytes: U32  # of what was written
    segment_bytes: U32  # TCP_MAXSEG
    scaled: U8  # window scaling was agreed upon
    send_scale: U8
    receive_scale: U8
    selective: U8  # SACK was agreed upon
    stamped: U8  # timestamps were agreed upon
    timestamp: U32  # TCP_TIMESTAMP; the lowest bit says that it counts microseconds
    window_sequence: U32  # struct tcp_repair_window: snd_wl1
    send_window: U32
    largest_window: U32
    receive_window: U32
    receive_window_from: U32  # rcv_wup


class InetSending(Record, type=0x43520061):
    """What the other end of such a connection has not acknowledged, in order: a piece of the stream."""

    socket: U32  # objref
    data: Bytes


class InetMessage(Record, type=0x4352004D):
    """What waits in a socket, in order: a datagram, or a piece of the stream of a connection."""

    socket: U32  # objref
    address: Text  # of the sender of a datagram
    port: U32
    data: Bytes


class SeccompFilter(Record, type=0x43520062):
    """A filter of seccomp(2)."""

    objref: U32
    flags: U32  # SECCOMP_FILTER_FLAG_LOG or 0
    program: Bytes  # struct sock_filter, 8 bytes each


TERMIOS_BYTES = 44


class Terminal(Record, type=0x4352004E):
    """A pseudo-terminal."""

    objref: U32
    index: U32  # of /dev/pts/INDEX
    settings: Bytes  # struct termios2
    rows: U16
    columns: U16
    width: U16  # in pixels
    height: U16
    locked: U8
    packets: U8  # TIOCPKT
    exclusive: U8  # TIOCEXCL
    hung_up: U8  # the slave was open, and is no more
    mode: U32  # of the slave: permission bits
    uid: U32
    gid: U32
    session: U32  # that it controls, 0 = none
    foreground: U32  # process group of that, 0 = none


class OutsideTerminal(Record, type=0x43520071):
    """A pseudo-terminal whose master is not in the image."""

    objref: U32
    index: U32  # of /dev/pts/INDEX
    settings: Bytes  # struct termios2
    rows: U16
    columns: U16
    width: U16  # in pixels
    height: U16
    mode: U32  # of the slave: permission bits
    uid: U32
    gid: U32
    session: U32  # that it controls, 0 = none that is known
    foreground: U32  # process group of that, 0 = none


class TerminalEnd(Record, type=0x4352004F):
    """One open file description of an end of a pseudo-terminal."""

    objref: U32
    terminal: U32  # objref of the TERMINAL, or of the OUTSIDE_TERMINAL
    master: U8
    flags: U32  # F_GETFL
    owner: Owner


FILE_READ, FILE_APPENDED, FILE_WRITTEN, FILE_MAPPED = range(4)
DIGEST_BYTES = 32


class FileContent(Record, type=0x43520070):
    """What was in a regular file that was open; of one that was saved, all of it is in SHARED_PAGES."""

    objref: U32
    file: U32  # objref of a REGULAR_FILE that is open on it
    use: U32  # FILE_*
    size: U64
    uid: U32
    gid: U32
    saved: U8
    digest: Bytes  # blake2b-32 of the file from digest_start to size; empty: not known, it was being written
    digest_start: U64


OBJECTS: tuple[type[Record], ...] = (
    RegularFile, Pipe, PipeEnd, SharedMemory, EventFd, TimerFd, SignalFd, Epoll, Inotify, PidFd, UnnamedFile,
    UnnamedOpen, UnixSocket, InetSocket, NetlinkSocket, Terminal, OutsideTerminal, TerminalEnd, SeccompFilter,
    PosixQueue, PosixQueueOpen, FileContent)
"""What has an objref."""

DESCRIPTIONS = tuple(kind for kind in OBJECTS if "owner" in kind.fields)
"""Open file descriptions, which descriptors refer to."""

PARTS: dict[type[Record], type[Record]] = {PipeData: Pipe, InotifyWatch: Inotify, SysvMemory: SharedMemory,
                                         PosixQueueMessage: PosixQueue}
"""What stands behind the object that it is in, and the kind of that."""

BETWEEN: tuple[type[Record], ...] = (UnixConnection, UnixMessage, InetConnection, OutsideConnection, InetMessage,
                                     InetSending, MulticastGroup, SocketFilter, JournalConnection, SysvSemaphores,
                                     SysvQueue, SysvMessage)
"""What has no objref of its own, and refers to objects before it."""
