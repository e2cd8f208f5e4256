"""Files that no name leads to: their content can be saved, but not shared with whoever else has them."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from crd.errors import Obstacle
from crd.target import huge_pages
from crd.target.holders import file_holders
from crd.target.wording import process_names

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from crd.target.descriptors import Open
    from crd.target.nameless import Look

_MEMFD = "/memfd:"


def is_unnamed(file: os.stat_result) -> bool:
    """Whether it is a regular file or directory without any name."""
    return file.st_nlink == 0 and (stat.S_ISREG(file.st_mode) or stat.S_ISDIR(file.st_mode))


def obstacles(entry: Open, look: Look) -> Iterator[Obstacle]:
    """Find out whether such a file could not be made again."""
    if entry.link.startswith(_MEMFD) and huge_pages.is_of_another_size(look.pid, entry.fd):
        yield Obstacle("fd.memfd", entry.name, "is a memory file of huge pages of another size than 2 MiB, which crd "
                       "cannot save yet", "Use pages of 2 MiB instead.")


def shared(look: Look) -> Iterator[Obstacle]:
    """Find such files that another process has open or mapped: a restarted one would be alone with its own."""
    files = {(entry.file.st_dev, entry.file.st_ino): entry for entry in look.table if is_unnamed(entry.file)}
    links = {entry.link for entry in files.values() if stat.S_ISREG(entry.file.st_mode)}
    holders = file_holders(look.inside, links, files) if links else {}
    for identity, entry in files.items():
        if identity in holders:
            yield Obstacle("fd.shared", entry.name,
                           f"has no name, and is open or mapped elsewhere too, in {process_names(holders[identity])}",
                           "Start the program without the other one, or checkpoint it when that has ended.")
