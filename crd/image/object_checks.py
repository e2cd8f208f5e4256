"""What each record of a shared object must be; ``checks`` has the rest."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from crd.image.checks import ADDRESS_END, FILE_OFFSET_MAX, PID_MAX, ImageState, check, need, need_flag
from crd.image.journal import JournalConnection
from crd.image.objects import (
    DESCRIPTIONS,
    DIGEST_BYTES,
    FILE_MAPPED,
    MESSAGE_BYTES_MAX,
    RIGHTS_MAX,
    TERMIOS_BYTES,
    UNIX_CONNECTED,
    UNIX_IDLE,
    UNIX_LISTENING,
    UNIX_NAME_BYTES_MAX,
    UNIX_RESET,
    UNNAMED_DIRECTORY,
    UNNAMED_HUGE,
    UNNAMED_MEMORY,
    UNNAMED_SHARED,
    Epoll,
    EventFd,
    FileContent,
    InetConnection,
    InetMessage,
    InetSending,
    InetSocket,
    Inotify,
    InotifyWatch,
    OutsideConnection,
    OutsideTerminal,
    PidFd,
    Pipe,
    PipeData,
    PipeEnd,
    RegularFile,
    SeccompFilter,
    SharedMemory,
    SignalFd,
    Terminal,
    TerminalEnd,
    TimerFd,
    UnixConnection,
    UnixMessage,
    UnixSocket,
    UnnamedFile,
    UnnamedOpen,
    plain_address,
)
from crd.image.profile import HUGE_PAGE_BYTES, PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.image.codec import Record
    from crd.image.sockets import SocketOption

PIPE_DATA_BYTES_MAX = 64 << 10
EVENT_COUNT_MAX = 2**64 - 2
"""What can be written into an eventfd."""
TIMER_CLOCKS = {0, 1, 7, 8, 9}
"""Those of timerfd_create(2)."""
TIMER_FLAGS = 3
"""TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET."""
TIME_NS_MAX = 2**62
SOCKET_KINDS = {1, 2, 5}
"""SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET."""
STREAMS, DATAGRAMS = 1, 2
FAMILIES = {2: 4, 10: 6}
"""AF_INET and AF_INET6, and the version of IP."""
PORT_MAX = 0xFFFF
JOURNAL_NAME_BYTES_MAX = 4096
SYSLOG_PRIORITY_MAX = 191
"""local7.debug."""
TERMINALS_MAX = 1 << 20
"""NR_UNIX98_PTY_MAX."""
TCP_STATES = {1, 4, 5, 8, 9, 11}
"""Those of a connection: TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING."""
FILTER_FLAG_LOG = 2
"""SECCOMP_FILTER_FLAG_LOG."""
FILTER_INSTRUCTION_BYTES = 8
FILTER_INSTRUCTIONS_MAX = 4096
"""BPF_MAXINSNS."""
WINDOW_SCALE_MAX = 14
"""RFC 7323."""
DATAGRAM_BYTES_MAX = 0xFFFF
BACKLOG_MAX = 2**31 - 1
OPTIONS_MAX = 128
MODE_MAX = 0o7777
SEALS = 0x3F
"""F_SEAL_SEAL to F_SEAL_EXEC."""
WATCH_MAX = 2**31 - 1
SHARED_MEMORY = "/dev/shm/"  # noqa: S108
"""Where shm_open(3) and sem_open(3) make it."""


def declare(image: ImageState, record: Record) -> None:
    """Take note of a shared object."""
    objref: int = record.objref  # type: ignore[attr-defined]
    need(objref and objref not in image.objects, f"takes the objref {objref} a second time")
    image.objects[objref] = type(record)
    image.whole = objref


def _need_whole(image: ImageState, objref: int) -> None:
    need(objref == image.whole, f"is in object {objref}, which is not the one before it")


@check.register(RegularFile)
def _check_file(record: RegularFile, image: ImageState) -> None:
    declare(image, record)
    need(record.path, "has no path")
    need(record.position <= FILE_OFFSET_MAX and record.size <= FILE_OFFSET_MAX, "has a size or position above 2**63")
    need_flag(record.mapped, "mapped")


@check.register(Pipe)
def _check_pipe(record: Pipe, image: ImageState) -> None:
    declare(image, record)
    need(record.data_bytes <= record.capacity_bytes, "holds more than its capacity")
    need(record.path.startswith("/") or not record.path, "has no absolute path")
    need(record.mode <= MODE_MAX, f"has the mode {record.mode:o}")
    need_flag(record.deleted, "deleted")
    image.pipe, image.pipe_bytes = record, 0


@check.register(PipeData)
def _check_pipe_data(record: PipeData, image: ImageState) -> None:
    _need_whole(image, record.objref)
    need(1 <= len(record.data) <= PIPE_DATA_BYTES_MAX, f"holds {len(record.data)} bytes")
    need_flag(record.packet, "packet")
    image.pipe_bytes += len(record.data)


@check.register(PipeEnd)
def _check_pipe_end(record: PipeEnd, image: ImageState) -> None:
    declare(image, record)
    image.need_object(record.pipe, Pipe)
    need_flag(record.hung_up, "hung_up")


@check.register(SharedMemory)
def _check_shared_memory(record: SharedMemory, image: ImageState) -> None:
    declare(image, record)
    need(0 < record.bytes <= ADDRESS_END and record.bytes % PAGE_BYTES == 0, f"has {record.bytes} bytes")
    image.shared[record.objref] = (record.bytes, 0)


@check.register(EventFd)
def _check_event_fd(record: EventFd, image: ImageState) -> None:
    declare(image, record)
    need(record.count <= EVENT_COUNT_MAX, f"has the count {record.count}")
    need_flag(record.semaphore, "semaphore")


@check.register(TimerFd)
def _check_timer_fd(record: TimerFd, image: ImageState) -> None:
    declare(image, record)
    need(record.clock in TIMER_CLOCKS, f"is of clock {record.clock}")
    need(record.set_flags <= TIMER_FLAGS, f"has the flags {record.set_flags:#x}")
    need(max(record.value_ns, record.interval_ns, record.taken_realtime_ns) <= TIME_NS_MAX, "has a time above 2**62 ns")


@check.register(SignalFd)
def _check_signal_fd(record: SignalFd, image: ImageState) -> None:
    declare(image, record)


@check.register(Epoll)
def _check_epoll(record: Epoll, image: ImageState) -> None:
    declare(image, record)


@check.register(Inotify)
def _check_inotify(record: Inotify, image: ImageState) -> None:
    declare(image, record)
    image.watches = set()


@check.register(InotifyWatch)
def _check_inotify_watch(record: InotifyWatch, image: ImageState) -> None:
    _need_whole(image, record.objref)
    need(0 < record.wd < WATCH_MAX and record.wd not in image.watches, f"has the number {record.wd}")
    need(record.path, "has no path")
    image.watches.add(record.wd)


@check.register(PidFd)
def _check_pid_fd(record: PidFd, image: ImageState) -> None:
    declare(image, record)
    need(record.pid == -1 or 0 < record.pid <= PID_MAX, f"is of pid {record.pid}")


def _is_below(directory: str, path: str) -> bool:
    return path.startswith(directory) and not {"", ".", ".."} & {*path.removeprefix(directory).split("/")}


@check.register(UnnamedFile)
def _check_unnamed_file(record: UnnamedFile, image: ImageState) -> None:
    declare(image, record)
    need(UNNAMED_MEMORY <= record.kind <= UNNAMED_HUGE, f"is of unknown kind {record.kind}")
    is_memory = record.kind in {UNNAMED_MEMORY, UNNAMED_HUGE}
    if not is_memory:
        need(record.path.startswith("/"), "has no absolute path")
    need(record.kind != UNNAMED_SHARED or _is_below(SHARED_MEMORY, record.path), f"is no shared memory: {record.path}")
    need(record.mode <= MODE_MAX, f"has the mode {record.mode:o}")
    need(record.size <= (0 if record.kind == UNNAMED_DIRECTORY else FILE_OFFSET_MAX), f"has {record.size} bytes")
    need(is_memory or not record.seals, "has seals, but is no memory")
    need(record.kind != UNNAMED_HUGE or not record.size % HUGE_PAGE_BYTES, f"has {record.size} bytes of huge pages")
    need(record.seals <= SEALS, f"has the seals {record.seals:#x}")
    if record.kind != UNNAMED_DIRECTORY:
        image.shared[record.objref] = (record.size + -record.size % PAGE_BYTES, 0)


@check.register(UnnamedOpen)
def _check_unnamed_open(record: UnnamedOpen, image: ImageState) -> None:
    declare(image, record)
    image.need_object(record.file, UnnamedFile)
    need(record.position <= FILE_OFFSET_MAX, "has a position above 2**63")


@check.register(FileContent)
def _check_file_content(record: FileContent, image: ImageState) -> None:
    declare(image, record)
    image.need_object(record.file, RegularFile)
    need(record.use <= FILE_MAPPED, f"is of unknown use {record.use}")
    need(record.size <= FILE_OFFSET_MAX, f"has {record.size} bytes")
    need_flag(record.saved, "saved")
    need(len(record.digest) in {0, DIGEST_BYTES}, f"has a digest of {len(record.digest)} bytes")
    need(record.digest_start <= record.size, "has a digest of what is behind its end")
    if record.saved:
        image.shared[record.objref] = (record.size + -record.size % PAGE_BYTES, 0)


@check.register(UnixSocket)
def _check_unix_socket(record: UnixSocket, image: ImageState) -> None:
    declare(image, record)
    need(record.kind in SOCKET_KINDS, f"is of unknown kind {record.kind}")
    need(record.state <= UNIX_RESET, f"has the unknown state {record.state}")
    need(record.state in {UNIX_IDLE, UNIX_CONNECTED} or record.kind != DATAGRAMS, "is of datagrams, but listens")
    need(max(len(record.name), len(record.target)) <= UNIX_NAME_BYTES_MAX, f"has a name of {len(record.name)} bytes")
    in_files = bool(record.name) and record.name[0] != 0
    need(record.path.startswith("/") if in_files else not record.path, "has a name and a path that do not fit")
    need(record.state != UNIX_LISTENING or record.name, "listens without a name")
    need(record.mode <= MODE_MAX, f"has the mode {record.mode:o}")
    need_flag(record.deleted, "deleted")
    need(record.backlog <= BACKLOG_MAX, f"has the backlog {record.backlog}")
    need(record.shutdown <= 3, f"has the shutdown {record.shutdown}")
    need_options(record.options)
    image.sockets[record.objref] = record.state


@check.register(UnixConnection)
def _check_unix_connection(record: UnixConnection, image: ImageState) -> None:
    for end in (record.client, record.accepted):
        need(image.sockets.pop(end, None) == UNIX_CONNECTED, f"connects object {end}, which is no unconnected one")
    need(not record.listener or image.sockets.get(record.listener) == UNIX_LISTENING,
         f"has object {record.listener} for a listener")


@check.register(UnixMessage)
def _check_unix_message(record: UnixMessage, image: ImageState) -> None:
    image.need_object(record.socket, UnixSocket)
    need(len(record.data) <= MESSAGE_BYTES_MAX, f"has {len(record.data)} bytes")
    need(len(record.source) <= UNIX_NAME_BYTES_MAX, f"has a source of {len(record.source)} bytes")
    need(record.pid <= PID_MAX, f"is of pid {record.pid}")
    need(len(record.rights) <= RIGHTS_MAX, f"carries {len(record.rights)} descriptors")
    for objref in record.rights:
        need(image.objects.get(objref) in DESCRIPTIONS, f"carries object {objref}, which is no open file description "
                                                        "before it")


@check.register(JournalConnection)
def _check_journal_connection(record: JournalConnection, image: ImageState) -> None:
    need(image.sockets.pop(record.socket, None) == UNIX_IDLE, f"connects object {record.socket}, not an idle socket")
    need("/" not in record.namespace and "\0" not in record.namespace, "has no name of a namespace")
    need(b"\n" not in record.identifier + record.unit, "has a name of several lines")
    need(max(len(record.identifier), len(record.unit)) <= JOURNAL_NAME_BYTES_MAX, "has a name of more than 4096 bytes")
    need(record.priority <= SYSLOG_PRIORITY_MAX, f"has the priority {record.priority}")
    for name in ("prefixed", "to_syslog", "to_kernel", "to_console"):
        need_flag(getattr(record, name), name)


@check.register(InetSocket)
def _check_inet_socket(record: InetSocket, image: ImageState) -> None:
    declare(image, record)
    need(record.family in FAMILIES, f"is of family {record.family}")
    need(record.kind in {STREAMS, DATAGRAMS}, f"is of unknown kind {record.kind}")
    need_flag(record.listening, "listening")
    need(not record.listening or (record.kind == STREAMS and record.local_port), "listens, but at no port of TCP")
    need(record.backlog <= BACKLOG_MAX, f"has the backlog {record.backlog}")
    need_flag(record.shutdown, "shutdown")
    if record.remote_port and record.kind == STREAMS:
        need(record.local_port and not record.listening, "is a connection without a port of its own, or listens")
        image.streams[record.objref] = record
    for address, port in ((record.local_address, record.local_port), (record.remote_address, record.remote_port)):
        _need_address(address if port else "", port, record.family)
    need_options(record.options)


def _is_at(address: str, port: int, other_address: str, other_port: int) -> bool:
    return (plain_address(address), port) == (plain_address(other_address), other_port)


@check.register(InetConnection)
def _check_inet_connection(record: InetConnection, image: ImageState) -> None:
    one, other = image.streams.pop(record.one, None), image.streams.pop(record.other, None)
    need(one and other
         and _is_at(one.local_address, one.local_port, other.remote_address, other.remote_port)
         and _is_at(one.remote_address, one.remote_port, other.local_address, other.local_port),
         f"connects objects {record.one} and {record.other}, which are no ends of one connection")


@check.register(OutsideConnection)
def _check_outside_connection(record: OutsideConnection, image: ImageState) -> None:
    need(image.streams.pop(record.socket, None), f"is of object {record.socket}, which is no end of a connection")
    need(record.state in TCP_STATES, f"has the state {record.state}")
    need(max(record.send_scale, record.receive_scale) <= WINDOW_SCALE_MAX, "has a window scale above 14")
    for name in ("scaled", "selective", "stamped"):
        need_flag(getattr(record, name), name)
    image.outside.add(record.socket)


@check.register(InetSending)
def _check_inet_sending(record: InetSending, image: ImageState) -> None:
    need(record.socket in image.outside, f"is of object {record.socket}, which is no connection to others")
    need(len(record.data) <= DATAGRAM_BYTES_MAX, f"has {len(record.data)} bytes")


@check.register(InetMessage)
def _check_inet_message(record: InetMessage, image: ImageState) -> None:
    image.need_object(record.socket, InetSocket)
    need(len(record.data) <= DATAGRAM_BYTES_MAX, f"has {len(record.data)} bytes")
    _need_address(record.address, record.port, 0)


@check.register(SeccompFilter)
def _check_seccomp_filter(record: SeccompFilter, image: ImageState) -> None:
    declare(image, record)
    need(record.flags in {0, FILTER_FLAG_LOG}, f"has the flags {record.flags:#x}")
    need_program(record.program)


@check.register(Terminal)
def _check_terminal(record: Terminal, image: ImageState) -> None:
    _check_settings(record, image)
    for name in ("locked", "packets", "exclusive", "hung_up"):
        need_flag(getattr(record, name), name)


@check.register(OutsideTerminal)
def _check_settings(record: Terminal | OutsideTerminal, image: ImageState) -> None:
    declare(image, record)
    need(record.index < TERMINALS_MAX, f"has the number {record.index}")
    need(max(record.session, record.foreground) <= PID_MAX, f"controls session {record.session}")
    need(record.session or not record.foreground, "has a foreground, but controls no session")
    need(len(record.settings) == TERMIOS_BYTES, f"has {len(record.settings)} bytes of settings")
    need(record.mode <= MODE_MAX, f"has the mode {record.mode:o}")


@check.register(TerminalEnd)
def _check_terminal_end(record: TerminalEnd, image: ImageState) -> None:
    declare(image, record)
    image.need_object(record.terminal, Terminal, OutsideTerminal)
    need_flag(record.master, "master")
    need(not record.master or image.objects[record.terminal] is Terminal, "is the master of an OUTSIDE_TERMINAL")


def _need_address(address: str, port: int, family: int) -> None:
    """Refuse what is no address in numbers: a name would be looked up."""
    need(port <= PORT_MAX, f"has port {port}")
    if address:
        version = ip_version(address)
        need(version and (not family or version == FAMILIES[family]), "has an address that is none of its family")


def ip_version(address: str) -> int:
    """Return 4 or 6, or 0 for what is no address in numbers without an interface."""
    try:
        return 0 if "%" in address else ip_address(address).version
    except ValueError:
        return 0


def need_program(program: bytes) -> None:
    """Refuse what is no program of classic BPF by its length."""
    length, rest = divmod(len(program), FILTER_INSTRUCTION_BYTES)
    need(1 <= length <= FILTER_INSTRUCTIONS_MAX and not rest, f"has a program of {len(program)} bytes")


def need_options(options: Sequence[SocketOption]) -> None:
    """Refuse more options, or longer ones, than sockets have."""
    need(len(options) <= OPTIONS_MAX and all(option.bytes <= 16 for option in options),
         f"has {len(options)} options, or one of more than 16 bytes")
