"""What the areas of a task map: which files, and what of them is in the image."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NamedTuple

from crd.image.core import vdso
from crd.image.core.memory import is_dumped
from crd.image.objects import FileContent, RegularFile, SharedMemory, UnnamedFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crd.image.codec import Record
    from crd.image.profile import Vma


class _File(NamedTuple):
    path: str
    identity: tuple[int, int]
    is_regular: bool


class MappedObjects:
    """The objects of an image that areas can refer to."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._whole = {vdso.OBJECT}
        self._saved: dict[tuple[int, int], int] = {}

    def take(self, record: Record) -> None:
        """Remember what may be mapped; other records are nothing to it."""
        match record:
            case RegularFile():
                self._files[record.objref] = _File(record.path, (record.device, record.inode),
                                                   stat.S_ISREG(record.mode))
            case SharedMemory() | UnnamedFile():
                self._whole.add(record.objref)
            case FileContent(saved=1):
                self._saved[self._files[record.file].identity] = record.objref

    def contents(self, vmas: Iterable[Vma]) -> dict[int, int]:
        """Return, by the objref of areas, that of the object whose pages are all that they map.

        Areas that are not there map nothing, or a file of which the image says only where it is, or are in no core.
        """
        found = {}
        for objref in {vma.objref for vma in vmas if is_dumped(vma)}:
            if objref in self._whole:
                found[objref] = objref
            elif (file := self._files.get(objref)) and file.identity in self._saved:
                found[objref] = self._saved[file.identity]
        return found

    def files(self, vmas: Iterable[Vma]) -> Iterator[tuple[int, int, int, str]]:
        """Yield start, end, offset in bytes and path of what maps a file that a debugger can look into."""
        for vma in vmas:
            file = self._files.get(vma.objref)
            if file and file.is_regular and file.identity not in self._saved:
                yield vma.start, vma.end, vma.offset, file.path
