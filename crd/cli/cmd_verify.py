"""``crctl verify``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import image_argument
from crd.console import units
from crd.console.program import json_option, print_json


@click.command()
@image_argument
@click.option("--restart", is_flag=True, help="Also make its tasks, and end them before any of them runs.")
@json_option
@socket_option
def verify(image: str, *, restart: bool, as_json: bool) -> None:
    """Read all that is stored of IMAGE, and check it.

    With --restart its tasks are then made as for a restart, memory, threads, open files and all, in a pid namespace of
    their own; they never run, since they would write to the files that they share with the original.  A file lock
    that the original holds is in their way.

    Exit status: 0 all is well, 1 it is damaged or cannot be restarted, 2 usage, 10 daemon unavailable, 11 no such
    image, 12 denied, 13 this host cannot restart it, 14 conflicting (a file has changed, several images fit).
    """
    with connect() as daemon:
        [reply] = daemon.stream("Verify", reference=image, restart=restart)
    if as_json:
        print_json(reply)
        return
    found, rehearsal = reply["image"], reply.get("rehearsal")
    click.echo(f"image {found['crid']}: {units.size(found['stored_bytes'])} read, all as stored")
    if rehearsal:
        click.echo(f"can be restarted: tasks {rehearsal['tasks']}, threads {rehearsal['threads']}, made in "
                   f"{units.duration(rehearsal['seconds'])}")
        for note in rehearsal["notes"]:
            click.echo(f"note: {note}")
