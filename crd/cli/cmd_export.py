"""``crctl export``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import image_argument
from crd.console import units
from crd.console.image_file import STANDARD_STREAM, opened_for_writing
from crd.console.program import json_option, print_json
from crd.console.progress import Progress
from crd.errors import BadRequest, CrdError, DaemonUnavailable

_CHUNK_BYTES = 1 << 20


@click.command("export")
@image_argument
@click.option("-o", "output", type=click.Path(path_type=Path), required=True, metavar="FILE|-", help="Where it goes.")
@json_option
@socket_option
def export_(image: str, *, output: Path, as_json: bool) -> None:
    """Write IMAGE to a file as the plain record stream, which crd restart and crctl import read.

    The file is there whole, or not at all.

    Exit status: 0 done, 1 failed, 2 usage, 10 daemon unavailable, 11 no such image, 12 denied, 13 another host has it.
    """
    if as_json and output == STANDARD_STREAM:
        raise BadRequest("--json and the image cannot both go to standard output", hint="Name a file.")
    with opened_for_writing(output) as file, connect() as daemon, Progress() as progress:
        reply, connection = daemon.upgrade("Export", reference=image)
        left = size = reply["image"]["image_bytes"]
        while left:
            if not (data := connection.recv(min(left, _CHUNK_BYTES))):
                raise DaemonUnavailable(f"the daemon cut the image short, {left} bytes before its end",
                                        hint="Its log says why: journalctl -u crd.")
            _write(file.fd, data)
            left -= len(data)
            progress.show(f"{units.size(size - left)} of {units.size(size)}")
        found = daemon.last()["image"]
        file.commit()
    if as_json:
        print_json(found)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view):]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CrdError(f"the image cannot be written: {error.strerror}") from error
