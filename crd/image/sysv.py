"""The records of System V IPC (sysvipc(7)); ``objects`` says where they stand."""

from __future__ import annotations

from crd.image.codec import Record
from crd.image.fields import S64, U8, U16, U32, U64, Bytes, Items  # noqa: TC001  # evaluated when the classes are made


class SysvMemory(Record, type=0x43520063):
    """The segment of System V shared memory that the memory before it is (shmget(2))."""

    objref: U32
    number: U32  # shmid
    key: U32  # 0 = IPC_PRIVATE
    asked_bytes: U64
    mode: U32  # permission bits
    uid: U32
    gid: U32
    removed: U8  # IPC_RMID: it goes with whoever has it attached last
    locked: U8  # SHM_LOCK


class SysvSemaphores(Record, type=0x43520064):
    """A set of System V semaphores (semget(2))."""

    number: U32  # semid
    key: U32  # 0 = IPC_PRIVATE
    mode: U32  # permission bits
    uid: U32
    gid: U32
    values: Items[U16]


class SysvQueue(Record, type=0x43520065):
    """A System V message queue (msgget(2))."""

    number: U32  # msqid
    key: U32  # 0 = IPC_PRIVATE
    mode: U32  # permission bits
    uid: U32
    gid: U32
    capacity_bytes: U64  # msg_qbytes


class SysvMessage(Record, type=0x43520066):
    """A message that waits in such a queue, in order."""

    queue: U32  # its number
    kind: S64
    data: Bytes
