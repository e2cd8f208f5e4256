"""``crctl show``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import image_argument
from crd.cli.render import image_fields, sharing_text, verdict_text
from crd.console.program import json_option, print_json
from crd.console.table import print_fields


@click.command()
@image_argument
@json_option
@socket_option
def show(image: str, *, as_json: bool) -> None:
    """Show all that is known of IMAGE: a crid, TARGET@latest, TARGET@TIME or HOST/CRID.

    Exit status: 0 done, 2 usage, 10 daemon unavailable, 11 no such image, 12 denied.
    """
    with connect() as daemon:
        reply = daemon.call("GetImage", reference=image)
    found, verdict, sharing = reply["image"], reply.get("retention"), reply.get("sharing")
    if as_json:
        print_json(found | {"retention": verdict, "sharing": sharing})
    else:
        print_fields(image_fields(found) | {"retention": verdict and verdict_text(verdict),
                                            "pages": sharing and sharing_text(sharing)})
