"""``crctl import``."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.render import image_summary
from crd.console import units
from crd.console.image_file import opened_for_reading
from crd.console.program import json_option, print_json
from crd.console.progress import Progress
from crd.errors import CrdError

_CHUNK_BYTES = 1 << 20


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE|-")
@json_option
@socket_option
def import_(file: Path, *, as_json: bool) -> None:
    """Take the image in FILE, or on standard input, into the archive, and print its crid.

    It is checked whole before it is there.  It gets a crid of this host and belongs to no target, so that no rule
    forgets it.

    Exit status: 0 done, 1 failed, or it is no whole image, 2 usage, 10 daemon unavailable, 12 denied, 13 another
    version of crd or a Linux-CR kernel wrote it.
    """
    with opened_for_reading(file) as fd, connect() as daemon, Progress() as progress:
        _, connection = daemon.upgrade("Import")
        sent = 0
        try:
            while data := os.read(fd, _CHUNK_BYTES):
                connection.sendall(data)
                sent += len(data)
                progress.show(units.size(sent))
            connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the reply, or that there is none, says why
        except OSError as error:
            raise CrdError(f"{file} cannot be read: {error.strerror}", path=str(file)) from error
        found = daemon.last()["image"]
    if as_json:
        print_json(found)
        return
    click.echo(found["crid"])
    click.echo(image_summary(found), err=True)
