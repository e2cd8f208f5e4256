"""``crctl diff``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import checked_reference
from crd.cli.render_difference import print_difference
from crd.console.program import json_option, print_json


@click.command()
@click.argument("images", nargs=2, metavar="IMAGE IMAGE", callback=checked_reference)
@click.option("--limit", type=click.IntRange(1, 500), metavar="N", default=100, show_default=True,
              help="Tell at most N tasks, N mappings and N open files.")
@json_option
@socket_option
def diff(images: tuple[str, str], *, limit: int, as_json: bool) -> None:
    """Show what differs from one IMAGE to another: tasks, memory by mapping, open files, and where they were taken.

    Images of one target share pages, and are compared in no time; of others all pages are read.

    Exit status: 0 done, 1 an image is damaged, 2 usage, 10 daemon unavailable, 11 no such image, 12 denied, 13 an image
    is of another host, or of a Linux-CR kernel, 14 another image of yours is being read.
    """
    with connect() as daemon:
        [reply] = daemon.stream("Diff", references=list(images), limit=limit)
    if as_json:
        print_json(reply)
    else:
        print_difference(reply)
