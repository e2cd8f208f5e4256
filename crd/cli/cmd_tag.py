"""``crctl tag``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import image_argument
from crd.console.program import json_option, print_json
from crd.ids import parse_tag


@click.command()
@image_argument
@click.argument("tags", nargs=-1, metavar="[TAG]...")
@click.option("--remove", multiple=True, metavar="TAG", help="Take this one away; may be given several times.")
@json_option
@socket_option
@click.pass_context
def tag(context: click.Context, image: str, tags: tuple[str, ...], *, remove: tuple[str, ...], as_json: bool) -> None:
    """Give IMAGE tags, words that say what it is, and take others away.

    crctl images --tag TAG lists the images that have one.

    Exit status: 0 done, 2 usage, 10 daemon unavailable, 11 no such image, or it has no such tag, 12 denied, 13
    another host has it.
    """
    if not tags and not remove:
        raise click.UsageError("give a TAG, or --remove one", context)
    added = [parse_tag(word) for word in tags]
    with connect() as daemon:
        found = daemon.call("Tag", reference=image, add=added, remove=list(remove))["image"]
    if as_json:
        print_json(found)
