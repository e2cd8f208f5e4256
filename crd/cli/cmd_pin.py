"""``crctl pin``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import image_argument
from crd.console.program import json_option, print_json


@click.command()
@image_argument
@click.option("--remove", is_flag=True, help="Let go of it: it may be forgotten again.")
@json_option
@socket_option
def pin(image: str, *, remove: bool, as_json: bool) -> None:
    """Keep IMAGE: nothing and nobody forgets it until the pin is removed.

    Exit status: 0 done, 2 usage, 10 daemon unavailable, 11 no such image, 12 denied, 13 another host has it.
    """
    with connect() as daemon:
        found = daemon.call("Pin", reference=image, pinned=not remove)["image"]
    if as_json:
        print_json(found)
