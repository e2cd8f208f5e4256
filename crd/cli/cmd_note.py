"""``crctl note``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import image_argument
from crd.console.program import json_option, print_json
from crd.ids import parse_note


@click.command()
@image_argument
@click.argument("text", nargs=-1, metavar="[TEXT]...")
@click.option("--remove", is_flag=True, help="Take away what is noted.")
@json_option
@socket_option
@click.pass_context
def note(context: click.Context, image: str, text: tuple[str, ...], *, remove: bool, as_json: bool) -> None:
    """Note TEXT about IMAGE, in the place of what was noted before; crctl show tells it.

    It is one line of up to 1000 characters.

    Exit status: 0 done, 2 usage, 10 daemon unavailable, 11 no such image, 12 denied, 13 another
    host has it.
    """
    if bool(text) == remove:
        raise click.UsageError("give either TEXT or --remove", context)
    wanted = None if remove else parse_note(" ".join(text))
    with connect() as daemon:
        found = daemon.call("Note", reference=image, text=wanted)["image"]
    if as_json:
        print_json(found)
