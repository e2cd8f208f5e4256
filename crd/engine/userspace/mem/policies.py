"""Memory policies (mbind(2), set_mempolicy(2)): on which nodes of a machine the pages of an area, or of a thread, lie.

The kernel tells them in /proc/PID/numa_maps, which is as dear to read as smaps: only where there are several nodes.
That of an area is kept among its flags, as ``np=POLICY``.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from crd.errors import TargetError
from crd.image.profile import ThreadPolicy
from crd.native.syscall import NR
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.plan import Plan
    from crd.image.profile import Vma
    from crd.native.batch import Batch

_ONLINE = Path("/sys/devices/system/node/online")
_LINE = re.compile(r"^([0-9a-f]+) ((?:prefer \(many\)|weighted interleave|[a-z]+)[^ \n]*)", re.ASCII | re.MULTILINE)
_POLICY = re.compile(r"([a-z]+(?:-\(many\)|-interleave)?)(?:=([a-z|]+))?(?::([0-9,-]{1,4096}))?", re.ASCII)
_MODES = {"default": 0, "prefer": 1, "bind": 2, "interleave": 3, "local": 4, "prefer-(many)": 5,
          "weighted-interleave": 6}
_FLAGS = {"balancing": 1 << 13, "relative": 1 << 14, "static": 1 << 15}
_NODES_MAX = 1024
_WORD = "np="


@cache
def matter() -> bool:
    """Whether this machine has more than one node."""
    try:
        return len(_numbers(_ONLINE.read_text().strip())) > 1
    except OSError:  # a kernel without nodes
        return False


def vm_flags(pid: int) -> dict[int, str]:
    """Return the VmFlags of smaps by start address, and among them the policies that areas have of their own."""
    flags = procfs.vm_flags(pid)
    if matter():
        policies = {int(start, 16): policy.replace(" ", "-") for start, policy in _LINE.findall(_numa_maps(pid))}
        of_task = next(iter(policies.values()), "default")
        for start, policy in policies.items():
            if policy != of_task and start in flags:
                flags[start] += f" {_WORD}{policy}"
    return flags


def of_thread(pid: int, tid: int) -> str:
    """Return the policy of a thread, which its first area shows; empty for the default."""
    found = _LINE.match(_numa_maps(f"{pid}/task/{tid}")) if matter() else None
    policy = found[2].replace(" ", "-") if found else ""
    return "" if policy == "default" else policy


def _numa_maps(pid: int | str) -> str:
    try:
        return procfs.read(pid, "numa_maps")
    except TargetError:  # gone, which others notice, or a kernel without them
        return ""


def of_area(vma: Vma) -> str:
    """Return the policy that an area has of its own; empty: none."""
    return next((word[len(_WORD):] for word in vma.flags.split() if word.startswith(_WORD)), "")


def restart_area(vma: Vma, batch: Batch) -> None:
    """Have an area follow its policy; raises RestartError if it cannot."""
    if wanted := _parsed(of_area(vma)):
        mode, mask = wanted
        batch.call(NR.MBIND, vma.start, vma.end - vma.start, mode, batch.data(mask), len(mask) * 8 + 1, 0,
                   what=f"the memory policy of {vma.start:#x}")


def restart_thread(policy: ThreadPolicy, batch: Batch) -> None:
    """Have a thread follow its policy; raises RestartError if it cannot."""
    if wanted := _parsed(policy.policy):
        mode, mask = wanted
        batch.call(NR.SET_MEMPOLICY, mode, batch.data(mask), len(mask) * 8 + 1, what="the memory policy of a thread")


def missing(plans: Sequence[Plan]) -> Iterator[str]:
    """Tell which policies cannot be followed here, a sentence each."""
    told = dict.fromkeys(chain.from_iterable(
        chain(map(of_area, plan.vmas), (record.policy for record in plan.of(ThreadPolicy))) for plan in plans))
    for policy in told:
        if policy and not _parsed(policy):
            yield f"no memory follows the policy {policy}: crd may not use these nodes, or knows no such policy"


def _parsed(policy: str) -> tuple[int, bytes] | None:
    """Return mode and node mask for the kernel; None if they are not to be had."""
    found = _POLICY.fullmatch(policy)
    flags = [*filter(None, (found[2] or "").split("|"))] if found else []
    if not found or found[1] not in _MODES or not {*flags} <= _FLAGS.keys():
        return None
    nodes = _numbers(found[3] or "")
    if not nodes <= _numbers(procfs.status("self")["Mems_allowed_list"]):
        return None
    mask = sum(1 << node for node in nodes).to_bytes(_NODES_MAX // 8, "little")
    return _MODES[found[1]] | sum(_FLAGS[flag] for flag in {*flags}), mask


def _numbers(text: str) -> set[int]:
    """Return the numbers of a list such as 0-2,7."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal() and len(last or first) <= len(str(_NODES_MAX)):
            found.update(range(int(first), int(last or first) + 1))
        else:
            found.add(-1)  # no node has this number
    return found
