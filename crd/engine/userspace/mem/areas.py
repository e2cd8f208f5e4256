"""The areas of a process, with what a stop asks of them: worked out before it, since they hardly ever change."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from crd.engine.userspace.mem.layout import is_kernel_area, kind
from crd.engine.userspace.mem.runs import joined
from crd.image.profile import VMA_PRIVATE_FILE, VMA_SHARED_FILE
from crd.target import procfs

if TYPE_CHECKING:
    from typing import Self

    from crd.engine.userspace.mem.runs import Run
    from crd.target.procfs import MapEntry


class Areas(list["MapEntry"]):
    """In ascending order; not to be changed."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read them."""
        return cls(procfs.maps(pid))

    def work_out(self) -> Self:
        """Have everything ready that can be asked."""
        for name, what in vars(Areas).items():
            if isinstance(what, cached_property):
                getattr(self, name)
        return self

    @cached_property
    def private(self) -> list[MapEntry]:
        """Those whose content is the process's own."""
        return [entry for entry in self if not entry.shared and not is_kernel_area(entry)]

    @cached_property
    def private_runs(self) -> list[Run]:
        """Where those lie, neighbours joined."""
        return joined((entry.start, entry.end - entry.start) for entry in self.private)

    @cached_property
    def shared(self) -> list[MapEntry]:
        """Those whose content is not."""
        return [entry for entry in self if entry.shared]

    @cached_property
    def files(self) -> list[MapEntry]:
        """Those of files, but shared memory."""
        return [entry for entry in self if kind(entry) in {VMA_PRIVATE_FILE, VMA_SHARED_FILE}]

    @cached_property
    def deleted(self) -> list[MapEntry]:
        """Those of files that have no name."""
        return [entry for entry in self.files if entry.deleted]

    @cached_property
    def nameless(self) -> list[tuple[int, int, str]]:
        """Start, end and permissions of anonymous ones."""
        return [(entry.start, entry.end, entry.permissions) for entry in self if not entry.path]

    @cached_property
    def stub_places(self) -> list[MapEntry]:
        """Code that may have room for stubs at its end, the vdso first."""
        places = [entry for entry in self
                  if entry.permissions == "r-xp" and (entry.is_file or entry.path == "[vdso]")]
        return sorted(places, key=lambda entry: entry.path != "[vdso]")
