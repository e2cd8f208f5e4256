"""What a process has of its parent's memory: a vessel that is born by a filled one shares its pages copy-on-write.

Only private areas are inherited; and of those only what the image has at the same addresses in both.  Whether the
pages are the same ones is nobody's business here: who fills the child looks at them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.engine.userspace.mem import huge
from crd.engine.userspace.mem.policies import of_area
from crd.engine.userspace.mem.runs import joined, without
from crd.image.profile import VMA_ANONYMOUS, VMA_PRIVATE_FILE, Vma
from crd.native.syscall import NR

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crd.engine.userspace.mem.runs import Run
    from crd.engine.userspace.plan import Plan
    from crd.engine.userspace.vessel import Vessel

_PRIVATE = {VMA_ANONYMOUS, VMA_PRIVATE_FILE}
_OF_MMAP = {"gd", "nr"}
"""VmFlags that an area has from mmap(2) on."""


def parents_of_heirs(plans: Sequence[Plan]) -> set[int]:
    """Return the processes whose memory must be filled before their children are made, since one inherits of it."""
    by_pid = {plan.pid: plan for plan in plans}
    return {parent.pid for plan in plans[1:] if (parent := by_pid[plan.process.parent_pid])
            if any(_inherited(parent.vmas, plan.vmas))}


def keep(vessel: Vessel, wanted: Sequence[Vma]) -> list[Run]:
    """Unmap what a vessel was born with, except for the parts that it shall have: these are returned.

    Raises:
        RestartError: a call failed.
    """
    parts = list(_inherited(vessel.areas, wanted))
    kept = joined((start, end - start) for start, end, _ in parts)
    for start, length in without(joined((vma.start, vma.end - vma.start) for vma in vessel.areas), kept):
        vessel.batch.call(NR.MUNMAP, start, length)
        vessel.flush()
    for start, end, protection in parts:
        if protection is not None:
            vessel.batch.call(NR.MPROTECT, start, end - start, protection, what=f"protecting {start:#x}")
            vessel.flush()
    vessel.run()
    return kept


def afresh(wanted: Sequence[Vma], kept: Sequence[Run]) -> list[Vma]:
    """Return the areas, or parts of areas, that have to be mapped beside those that were kept."""
    return [vma if length == vma.end - vma.start else _part(vma, start, start + length)
            for vma in wanted for start, length in without([(vma.start, vma.end - vma.start)], kept)]


def _part(vma: Vma, start: int, end: int) -> Vma:
    fields = {name: getattr(vma, name) for name in Vma.fields}
    return Vma(**{**fields, "start": start, "end": end, "offset": vma.offset + start - vma.start})


def _inherited(had: Sequence[Vma], wanted: Sequence[Vma]) -> Iterator[tuple[int, int, int | None]]:
    """Yield start and end of what can be inherited, and the protection that it needs, None if it has that."""
    first = 0
    for vma in wanted:
        while first < len(had) and had[first].end <= vma.start:
            first += 1
        parts = []
        for other in had[first:]:
            if other.start >= vma.end:
                break
            if _are_alike(other, vma):
                parts.append((max(vma.start, other.start), min(vma.end, other.end),
                              None if other.protection == vma.protection else vma.protection))
        if "gd" not in vma.flags.split() or [part[:2] for part in parts] == [(vma.start, vma.end)]:
            yield from parts  # what grows down does so as one area


def _are_alike(one: Vma, other: Vma) -> bool:
    return (one.kind in _PRIVATE and (one.kind, one.objref) == (other.kind, other.objref)
            and (one.kind == VMA_ANONYMOUS or one.offset - one.start == other.offset - other.start)
            and not huge.has(one) and not huge.has(other)
            and _OF_MMAP & {*one.flags.split()} == _OF_MMAP & {*other.flags.split()}
            and of_area(one) == of_area(other))
