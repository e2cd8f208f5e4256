"""``crctl export``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import image_argument
from crd.console import units
from crd.console.core_file import core_summary, in_any_order
from crd.console.image_file import STANDARD_STREAM, opened_for_writing
from crd.console.program import json_option, print_json
from crd.console.progress import Progress
from crd.errors import BadRequest, DaemonUnavailable

if TYPE_CHECKING:
    import socket

    from _typeshed import WriteableBuffer

    from crd.console.image_file import Output
    from crd.image.core.writer import Core

_CHUNK_BYTES = 1 << 20


@click.command("export")
@image_argument
@click.option("-o", "output", type=click.Path(path_type=Path), required=True, metavar="FILE|-", help="Where it goes.")
@click.option("--format", "kind", type=click.Choice(["image", "core"]), default="image", show_default=True,
              help="The image itself, or an ELF core of one of its tasks, for debuggers.")
@click.option("--task", "pid", type=click.IntRange(min=1), metavar="PID",
              help="Of which a core is written, if not of the first.")
@json_option
@socket_option
def export_(image: str, *, output: Path, kind: str, pid: int | None, as_json: bool) -> None:
    """Write IMAGE to a file: as the plain record stream, which crd restart and crctl import read, or as an ELF core.

    The file is there whole, or not at all.  gdb PROGRAM FILE opens a core; as in cores of the kernel, what is as it was
    in files (the program, its libraries) and what the program keeps out of cores (MADV_DONTDUMP) is not in it.  Into a
    pipe it goes by way of a temporary file, in TMPDIR or /var/tmp.

    Exit status: 0 done, 1 failed, 2 usage, 10 daemon unavailable, 11 no such image or task, 12 denied, 13 another host
    has it, or no core can be made of it, since a Linux-CR kernel has taken it.
    """
    if as_json and output == STANDARD_STREAM:
        raise BadRequest("--json and the image cannot both go to standard output", hint="Name a file.")
    if pid is not None and kind != "core":
        raise BadRequest("an image has all its tasks", hint="--task is for --format core.")
    with opened_for_writing(output) as file, connect() as daemon, Progress() as progress:
        reply, connection = daemon.upgrade("Export", reference=image)
        stream = io.BufferedReader(_Arriving(connection, reply["image"]["image_bytes"], progress), _CHUNK_BYTES)
        core = _write_core(stream, file, pid) if kind == "core" else None
        while data := stream.read(_CHUNK_BYTES):
            if core is None:  # else this is what is behind the image's tail
                file.write(data)
        found = daemon.last()["image"]
        file.commit()
    if as_json:
        print_json({**found, "core": core._asdict()} if core else found)
    elif core:
        click.echo(core_summary(core._asdict(), output), err=True)


class _Arriving(io.RawIOBase):
    """The bytes of an image, as they come."""

    def __init__(self, connection: socket.socket, size: int, progress: Progress) -> None:
        self._connection = connection
        self._size = self._left = size
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)[:self._left]
        n_read = self._connection.recv_into(view) if view else 0
        if view and not n_read:
            raise DaemonUnavailable(f"the daemon cut the image short, {self._left} bytes before its end",
                                    hint="Its log says why: journalctl -u crd.")
        self._left -= n_read
        self._progress.show(f"{units.size(self._size - self._left)} of {units.size(self._size)}")
        return n_read


def _write_core(stream: io.BufferedReader[_Arriving], file: Output, pid: int | None) -> Core:
    from crd.image.core.writer import write_core
    from crd.target.vdso import own_vdso

    with in_any_order(file) as place:
        return write_core(stream, place, pid, own_vdso())
