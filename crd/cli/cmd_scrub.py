"""``crctl scrub``."""

from __future__ import annotations

from typing import Any

import click

from crd.cli.daemon import connect, socket_option
from crd.console import units
from crd.console.program import json_option, print_json
from crd.console.progress import Progress
from crd.errors import EXIT_FAILED


@click.command()
@json_option
@socket_option
@click.pass_context
def scrub(context: click.Context, *, as_json: bool) -> None:
    """Read and check everything that is stored, now, not faster than retention.scrub_rate.

    The daemon does so by itself, each image once in retention.scrub_every.

    Exit status: 0 all is well, 1 there is damage, 10 daemon unavailable, 12 denied.
    """
    reply: dict[str, Any] = {}
    with connect() as daemon, Progress() as progress:
        for reply in daemon.stream("Scrub"):
            progress.show(f"{reply['checked']} of {reply['images']} images, {units.size(reply['bytes'])}")
    if as_json:
        print_json(reply)
    else:
        click.echo(f"{reply['checked']} images, {units.size(reply['bytes'])} read; damaged: "
                   + (", ".join(map(str, reply["damaged"])) or "none"))
    if reply["damaged"]:
        context.exit(EXIT_FAILED)
