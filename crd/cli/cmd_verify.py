"""``crctl verify``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import image_argument
from crd.console import units
from crd.console.program import json_option, print_json
from crd.text import printable


@click.command()
@image_argument
@click.option("--restart", is_flag=True, help="Also let a copy of its tasks run for a moment in a sandbox.")
@json_option
@socket_option
def verify(image: str, *, restart: bool, as_json: bool) -> None:
    """Read all that is stored of IMAGE, and check it.

    With --restart a copy of its tasks is then restarted, and let run until each was seen to run or to wait as it did.
    It has namespaces of its own, sees all files through overlays that end with it, and reaches nobody outside: its
    connections are over, its rights those that touch only itself.  What a task has of devices, file systems or
    addresses may not exist in there; then the tasks are made but never run, which is said, with the reason.

    Exit status: 0 all is well, 1 it is damaged, cannot be restarted, or the copy did not run on, 2 usage, 10 daemon
    unavailable, 11 no such image, 12 denied, 13 this host cannot restart it, or another has it, 14 conflicting
    (a file has changed).
    """
    with connect() as daemon:
        [reply] = daemon.stream("Verify", reference=image, restart=restart)
    if as_json:
        print_json(reply)
        return
    found, rehearsal = reply["image"], reply.get("rehearsal")
    click.echo(f"image {found['crid']}: {units.size(found['image_bytes'])}, all as stored")
    if rehearsal:
        click.echo(f"can be restarted: tasks {rehearsal['tasks']}, threads {rehearsal['threads']}, "
                   f"{'tried' if rehearsal['ran'] else 'made'} in {units.duration(rehearsal['seconds'])}")
        for seen in rehearsal["seen"]:
            click.echo(printable(f"process {seen['pid']} ({seen['comm']}): {seen['what']}"))
        if not rehearsal["ran"]:
            click.echo(printable(f"not let run: {rehearsal['hindrance']}"))
        for note in rehearsal["notes"]:
            click.echo(printable(f"note: {note}"))
