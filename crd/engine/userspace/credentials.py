"""Who a thread is: uids, gids, groups, capability sets, securebits, no_new_privs (credentials(7), capabilities(7))."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.image.profile import Capabilities
from crd.native.syscall import NR

if TYPE_CHECKING:
    from crd.image.profile import Thread
    from crd.native.batch import Batch

_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 28, 38, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_KEEP_CAPS = 1 << 4
_CAPABILITY_VERSION_3 = 0x20080522
_HEADER = struct.Struct("<Ii")
_DATA = struct.Struct("<6I")
_LOW = (1 << 32) - 1
CAPABILITIES = 64


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of one thread."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    capabilities: Capabilities
    no_new_privileges: int


def dump(status: dict[str, str]) -> Credentials:
    """Read them from the lines of status."""
    def numbers(key: str) -> tuple[int, ...]:
        return tuple(int(word) for word in status[key].split())

    def bits(key: str) -> int:
        return int(status[key], 16)

    return Credentials(numbers("Uid"), numbers("Gid"), numbers("Groups"),
                       Capabilities(inheritable=bits("CapInh"), permitted=bits("CapPrm"), effective=bits("CapEff"),
                                    bounding=bits("CapBnd"), ambient=bits("CapAmb")),
                       int(status["NoNewPrivs"]))


def restart(thread: Thread, batch: Batch, ours: Capabilities) -> None:
    """Give a thread its credentials; it can do nothing privileged afterwards that the image's could not.

    The order is that in which each step is still allowed.

    Args:
        thread: whose.
        batch: executed by the thread itself.
        ours: the capabilities with which the vessel began.
    """
    wanted = thread.capabilities
    for capability in range(CAPABILITIES):
        if ours.bounding >> capability & 1 and not wanted.bounding >> capability & 1:
            batch.call(NR.PRCTL, _PR_CAPBSET_DROP, capability, what=f"dropping capability {capability}")
    batch.call(NR.PRCTL, _PR_SET_SECUREBITS, _KEEP_CAPS, check=False)
    groups = batch.data(struct.pack(f"<{len(thread.groups)}I", *thread.groups))
    batch.call(NR.SETGROUPS, len(thread.groups), groups, what="setgroups")
    batch.call(NR.SETRESGID, *thread.gids[:3], what="setresgid")
    batch.call(NR.SETFSGID, thread.gids[3])
    batch.call(NR.SETRESUID, *thread.uids[:3], what="setresuid")
    batch.call(NR.SETFSUID, thread.uids[3])
    _capset(batch, ours.permitted, ours.permitted, wanted.inheritable)  # setresuid has cleared the effective set
    for capability in range(CAPABILITIES):
        if wanted.ambient >> capability & 1:
            batch.call(NR.PRCTL, _PR_CAP_AMBIENT, _AMBIENT_RAISE, capability, 0, 0, what="ambient capability")
    batch.call(NR.PRCTL, _PR_SET_SECUREBITS, thread.secure_bits, check=bool(thread.secure_bits), what="securebits")
    _capset(batch, wanted.effective & ours.permitted, wanted.permitted & ours.permitted, wanted.inheritable)
    if thread.no_new_privileges:
        batch.call(NR.PRCTL, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def missing(thread: Thread, ours: Capabilities) -> int:
    """Return the capabilities of a thread that we cannot give it, since we do not have them."""
    return thread.capabilities.permitted & ~ours.permitted


def _capset(batch: Batch, effective: int, permitted: int, inheritable: int) -> None:
    header = batch.data(_HEADER.pack(_CAPABILITY_VERSION_3, 0))
    data = batch.data(_DATA.pack(effective & _LOW, permitted & _LOW, inheritable & _LOW,
                                 effective >> 32, permitted >> 32, inheritable >> 32))
    batch.call(NR.CAPSET, header, data, what="capset")
