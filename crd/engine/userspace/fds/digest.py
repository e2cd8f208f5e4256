"""Digests of files on a disk or in memory, by which a restart knows their content again."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from hashlib import blake2b

from crd.errors import NativeError
from crd.image.objects import DIGEST_BYTES
from crd.native.syscall import syscall

_LARGE_BYTES = 1 << 20
_END_BYTES = 64 << 10
_CHUNK_BYTES = 1 << 20
_FSTATFS, _STATFS_BYTES = 138, 120
_TMPFS = 0x0102_1994
_STORAGE = {_TMPFS, 0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x2FC1_2FC1, 0xCA45_1A4E, 0x8584_58F6, 0x794C_7630}
"""tmpfs, ext4, xfs, btrfs, f2fs, zfs, bcachefs, ramfs, overlayfs (include/uapi/linux/magic.h): reading a file there has
no effect, and needs no network and no other process."""


def digest_start(size: int) -> int:
    """Return where the digest of a file of this size begins: of a large one only the end is read."""
    return 0 if size <= _LARGE_BYTES else size - _END_BYTES


def digest(fd: int, start: int, end: int) -> bytes:
    """Return the digest of part of a file; empty if the file ends before."""
    found = blake2b(digest_size=DIGEST_BYTES)
    while start < end:
        part = os.pread(fd, min(_CHUNK_BYTES, end - start), start)
        if not part:
            return b""
        found.update(part)
        start += len(part)
    return found.digest()


def is_storage(fd: int) -> bool:
    """Whether a file is a regular one that may be read as often as we like."""
    return stat.S_ISREG(os.fstat(fd).st_mode) and _file_system(fd) in _STORAGE


def is_in_memory(fd: int) -> bool:
    """Whether the content of a file is nowhere but in memory, so that reading it waits for nothing."""
    return _file_system(fd) == _TMPFS


def _file_system(fd: int) -> int:
    told = bytearray(_STATFS_BYTES)
    with suppress(NativeError):
        syscall(_FSTATFS, fd, told)
    return int.from_bytes(told[:8], "little")
