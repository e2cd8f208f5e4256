"""The generations of Linux-CR's image format: how to tell them apart, and what their records are called.

Sources: spec sections 3 and 6; the layouts of gen-A and gen-C are confirmed by images of real kernels.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from crd.errors import ImageError, ImageTruncated, ImageVersionUnsupported
from crd.image.profile import RECORD_TYPE_FIRST, Profile
from crd.image.records import MAGIC_HEAD

PREFIX_BYTES = 512
"""So much of the front of an image is enough to recognise it."""
_PROFILE_OFFSET = 283
"""Where crd's second record is: behind HEAD, three BUFFERs and HEAD_ARCH."""


class Generation(StrEnum):
    """A family of formats that can be told by its framing."""

    A = "gen-A"  # v2 to v13
    B = "gen-B"  # v14-rc1 to v14-rc3
    C = "gen-C"  # v14 to v16
    D = "gen-D"  # v17 to v23
    CRD = "crd"  # gen-B with crd's own records

    @property
    def versions(self) -> str:
        """The releases of Linux-CR that wrote it."""
        return {"gen-A": "v2 to v13", "gen-B": "v14-rc1 to v14-rc3", "gen-C": "v14 to v16",
                "gen-D": "v17 to v23", "crd": "v14-rc2 with crd's profile"}[self]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the bytes of an image are to be read.

    Attributes:
        generation: its family.
        byte_order: ``<`` or ``>``, as the struct module writes it.
        frame: codes of type, length and, of gen-A, parent.
    """

    generation: Generation
    byte_order: str
    frame: str

    @property
    def frame_bytes(self) -> int:
        """Size of the header of a record."""
        return struct.calcsize("<" + self.frame)

    @property
    def length_counts_frame(self) -> bool:
        """Whether a record's length includes its header."""
        return self.generation in {Generation.C, Generation.D}

    def unpack(self, codes: str, data: bytes, offset: int = 0) -> tuple[Any, ...]:
        """Unpack in the image's byte order."""
        return struct.unpack_from(self.byte_order + codes, data, offset)


def recognise(prefix: bytes) -> Dialect:
    """Tell the dialect of an image from its first ``PREFIX_BYTES`` (or all of it, if shorter).

    Raises:
        ImageTruncated: there is less than the magic.
        ImageVersionUnsupported: no generation of Linux-CR begins like that.
    """
    if len(prefix) < 16:
        raise ImageTruncated(f"{len(prefix)} bytes are no image", end=len(prefix), record="HEAD", errno=errno.EPIPE)
    for byte_order in "<>":
        magic = struct.pack(byte_order + "Q", MAGIC_HEAD)
        if prefix[8:16] == magic:
            return _with_long_frames(prefix, byte_order)
        if prefix[4:12] == magic:
            return Dialect(Generation.B, byte_order, "HH")
    raise ImageVersionUnsupported("this is no Linux-CR image: the magic is missing", record="HEAD", errno=errno.EINVAL)


def is_of_a_kernel(prefix: bytes) -> bool:
    """Whether an image that begins like that was written by a Linux-CR kernel; what is no image was not."""
    try:
        return recognise(prefix).generation is not Generation.CRD
    except ImageError:
        return False


def _with_long_frames(prefix: bytes, byte_order: str) -> Dialect:
    first, second = struct.unpack_from(byte_order + "HH", prefix)
    if first == 1 and second:
        return Dialect(Generation.A, byte_order, "HHI")
    dialect = Dialect(Generation.B, byte_order, "II")
    _, length = dialect.unpack("II", prefix)
    if _is_record(dialect, prefix, 8 + length, 65):
        is_crd = byte_order == "<" and _is_record(dialect, prefix, _PROFILE_OFFSET, None, Profile.record_type)
        return Dialect(Generation.CRD, byte_order, "II") if is_crd else dialect
    embedded = Generation.C if length <= 48 else Generation.D
    if _is_record(dialect, prefix, length, 73) or length != 40:
        return Dialect(embedded, byte_order, "II")
    return dialect


def _is_record(dialect: Dialect, prefix: bytes, offset: int, length: int | None, kind: int | None = None) -> bool:
    if offset + 8 > len(prefix):
        return False
    found_kind, found_length = dialect.unpack("II", prefix, offset)
    return bool(found_length == length or length is None) and (found_kind == kind if kind else found_kind <= 10)


class Layout:
    """A record's name and, where they are known, its fields."""

    def __init__(self, name: str, fields: str = "") -> None:
        """Declare fields as ``name:code``, codes of the struct module."""
        pairs = [field.split(":") for field in fields.split()]
        self.name = name
        self.names = [name for name, _ in pairs]
        self.codes = "".join(code for _, code in pairs)
        self.payload_bytes = struct.calcsize("<" + self.codes) if pairs else None

    def decode(self, dialect: Dialect, payload: bytes) -> dict[str, Any]:
        """Return the fields of a payload of the right size."""
        return dict(zip(self.names, dialect.unpack(self.codes, payload), strict=True)) if self.codes else {}


HEAD_ARCH = Layout("HEAD_ARCH", "has_fxsr:H has_xsave:H xstate_bytes:H pad:H")
BUFFER = Layout("BUFFER")
STRING = Layout("STRING")
FNAME = Layout("FNAME")
TREE = Layout("TREE", "tasks:I pad:I")
TASK = Layout("TASK", "state:I exit_state:I exit_code:I exit_signal:I comm_bytes:I pad:I")
TAIL = Layout("TAIL", "magic:Q")
THREAD = Layout("THREAD", "gdt_entries:H tls_bytes:H ntls:H pad:H")
CPU = Layout("CPU", "registers:264s uses_debug:I used_math:I")
CPU_256 = Layout("CPU", "registers:248s uses_debug:I used_math:I")  # without debug registers 4 and 5
MM = Layout("MM", "objref:I map_count:I start_code:Q end_code:Q start_data:Q end_data:Q start_brk:Q brk:Q "
                  "start_stack:Q arg_start:Q arg_end:Q env_start:Q env_end:Q")
VMA = Layout("VMA", "kind:I pad:I start:Q end:Q protection:Q flags:Q page_offset:Q")
PGARR = Layout("PGARR", "pages:Q")
MM_CONTEXT = Layout("MM_CONTEXT", "entry_bytes:H nldt:H pad:I")
FILES = Layout("FILES", "objref:I nfds:I")
FD_ENT = Layout("FD_ENT", "objref:I fd:i close_on_exec:I pad:I")
FD_DATA = Layout("FD_DATA", "kind:H mode:H flags:I position:Q version:Q")

Layouts = dict[int, Layout]

PATCH_04: Layouts = {2: BUFFER, 3: STRING, 101: TASK, 5001: TAIL, 9001: TAIL}
"""gen-A, gen-B and gen-C before the other patches of their series."""

FULL_SERIES: Layouts = {
    2: HEAD_ARCH, 3: BUFFER, 4: STRING, 5: FNAME, 101: TREE, 102: TASK, 103: THREAD, 104: CPU, 201: MM, 202: VMA,
    203: PGARR, 204: MM_CONTEXT, 301: FILES, 302: FD_ENT, 303: FD_DATA, 5001: TAIL, 9001: TAIL,
}
"""gen-A and gen-B."""


def _named(first: int, names: str) -> Layouts:
    return {first + index: Layout(name) for index, name in enumerate(names.split())}


_FILES_AND_ON: Layouts = {
    **_named(301, "FILE_TABLE FILE_DESC FILE_NAME FILE"), **_named(501, "IPC SHM MSG MSG_MSG SEM"),
    451: Layout("FS"), 9001: TAIL, 9999: Layout("ERROR"),
}

V16: Layouts = {
    2: HEAD_ARCH, 3: BUFFER, 4: STRING, 5: Layout("OBJREF", "kind:I objref:i"), 101: TREE, 102: TASK,
    **_named(103, "TASK_NS TASK_OBJS RESTART_BLOCK"), **_named(201, "THREAD_TLS CPU_FPU"),
    106: THREAD, 107: CPU_256, **_named(401, "MM VMA"), 403: PGARR,
    404: Layout("MM_CONTEXT", "vdso:Q entry_bytes:I nldt:I"), **_FILES_AND_ON, 305: Layout("FILE_PIPE"),
}
V16_REGISTERS_ONLY: Layouts = {**V16, 101: TASK, 102: THREAD, 103: CPU_256}
"""gen-C with its first two patches (recognised by a TASK of number 101)."""

_D_SHARED: Layouts = {
    2: Layout("HEAD_ARCH"), 3: Layout("CONTAINER"), 4: BUFFER, 5: STRING, 6: Layout("OBJREF", "kind:I objref:i"),
    7: Layout("LSM_INFO"), 8: Layout("SECURITY"), **_FILES_AND_ON,
    **_named(305, "PIPE_BUF TTY TTY_LDISC EPOLL_ITEMS"), **_named(506, "SEM_UNDO SEM_UNDO"),
    **_named(601, "SIGHAND SIGNAL SIGNAL_TASK SIGPENDING"),
}
V18: Layouts = {
    **_D_SHARED, 101: TREE, **_named(102, "TASK TASK_NS TASK_OBJS RESTART_BLOCK THREAD CPU"),
    **_named(401, "MM VMA PGARR MM_CONTEXT"),
}
V23: Layouts = {
    **_D_SHARED,
    **_named(101, "PIDS TREE TASK TASK_NS TASK_OBJS RESTART_BLOCK THREAD CPU NS UTS_NS IPC_NS MNT_NS CAPABILITIES "
                  "USER_NS CRED USER GROUPINFO TASK_CREDS"),
    **_named(201, "CPU_FPU MM_CONTEXT_LDT"), **_named(401, "MM VMA PGARR HPAGE MM_CONTEXT"),
}


def record_name(layouts: Layouts, number: int) -> str:
    """Return what a record is called: its name, or its number if it is unknown."""
    if number == 1:
        return "HEAD"
    base = f"0x{number:x}" if number >= RECORD_TYPE_FIRST else str(number)
    return layouts[number].name if number in layouts else f"RECORD {base}"
