"""A core is written in any order, even if it goes where byte must follow byte."""

from __future__ import annotations

import os
import shlex
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from crd.console import units
from crd.console.image_file import STANDARD_STREAM
from crd.errors import CrdError
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crd.console.image_file import Output

_COPIED_BYTES = 1 << 20
_LARGE_FILES = Path("/var/tmp")  # noqa: S108  # for files without a name (file-hierarchy(7))


class AnyOrder:
    """What takes bytes at any offset; those that it never got are zeros, and a hole in the file."""

    def __init__(self, fd: int) -> None:
        """Write to ``fd``, which stays the caller's."""
        self._fd = fd

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of it.

        Raises:
            CrdError: it cannot be written.
        """
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._fd, view, offset)
                view, offset = view[done:], offset + done
        except OSError as error:
            raise CrdError(f"the core cannot be written: {error.strerror}") from error


@contextmanager
def in_any_order(output: Output) -> Iterator[AnyOrder]:
    """Have an output written to in any order.

    What is no file of our own gets all of it in the end, from a file without a name: in ``TMPDIR``, or where large ones
    belong.

    Raises:
        CrdError: there is no room for that file.
    """
    if output.is_new:
        yield AnyOrder(output.fd)
        return
    directory = None if "TMPDIR" in os.environ or not _LARGE_FILES.is_dir() else _LARGE_FILES
    with TemporaryFile(buffering=0, dir=directory) as file:
        yield AnyOrder(file.fileno())
        file.seek(0)
        while data := file.read(_COPIED_BYTES):
            output.write(data)


def core_summary(core: Mapping[str, Any], path: Path) -> str:
    """Return what a core holds, and what opens it: the fields of ``Core``, and where it went."""
    threads = f"{core['threads']} thread{'s' * (core['threads'] != 1)}"
    program, file = (shlex.quote(name) for name in (core["exe"], "FILE" if path == STANDARD_STREAM else str(path)))
    return printable(f"pid {core['pid']} ({core['comm']}), {threads}, {units.size(core['memory_bytes'])} of memory: "
                     f"gdb {program} {file}")
