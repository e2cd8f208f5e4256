"""What is seen of stopped processes from outside: the files of all are read at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crd.native.files import read_files
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from crd.target.procfs import PosixTimerEntry, Stat

_FILES, _LINKS = ("maps", "stat", "timers"), ("cwd", "root")


@dataclass(frozen=True, slots=True)
class Outside:
    """Of a process in the stop.

    Attributes:
        maps: text of the file.
        stat: as ``procfs.stat``.
        posix_timers: as ``procfs.posix_timers``.
        cwd, root: where these links point.
    """

    maps: str
    stat: Stat
    posix_timers: list[PosixTimerEntry]
    cwd: str
    root: str


def look(pids: Collection[int]) -> Iterator[tuple[int, Outside]]:
    """Yield of each process what is seen of it.

    Raises:
        TargetGone, TargetError: as ``procfs.read``.
    """
    texts = iter(read([procfs.path(pid, name) for pid in pids for name in _FILES],
                      [procfs.path(pid, name) for pid in pids for name in _LINKS]))
    files = [(next(texts), next(texts), next(texts)) for _ in pids]
    links = [(next(texts), next(texts)) for _ in pids]
    for pid, (maps, stat, timers), (cwd, root) in zip(pids, files, links, strict=True):
        yield pid, Outside(maps, procfs.parsed_stat(pid, stat), procfs.parsed_posix_timers(pid, timers), cwd, root)


def read(paths: Sequence[str], links: Sequence[str]) -> list[str]:
    """Return what files in /proc/PID hold, and behind that where links point; raises as ``procfs.read``."""
    try:
        found = read_files(paths, links)
    except OSError as error:
        _, _, pid, name = str(error.filename).split("/", 3)
        with procfs.asking(pid, name):
            raise
    return [text.decode("utf-8", "surrogateescape") for text in found]
