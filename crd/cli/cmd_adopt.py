"""``crctl adopt``."""

from __future__ import annotations

from typing import Any

import click

from crd.cli.daemon import connect, socket_option
from crd.console.program import json_option, print_json
from crd.console.progress import Progress
from crd.errors import EXIT_PARTLY_DONE
from crd.ids import parse_target_name
from crd.text import printable


@click.command()
@click.option("--target", metavar="TARGET", help="That they are to belong to; without it no rule forgets them.")
@json_option
@socket_option
@click.pass_context
def adopt(context: click.Context, *, target: str | None, as_json: bool) -> None:
    """Take images into the catalog that it has lost and the archive still has, and print their crids.

    Each is checked whole, and is then as it was, but for its target, tags, note and pin, which only the catalog knew.

    Exit status: 0 done, 1 failed, 2 usage, 3 some could not be taken in, 10 daemon unavailable, 12 denied.
    """
    told: dict[str, Any] = {}
    with connect() as daemon, Progress() as progress:
        for told in daemon.stream("Adopt", target=target and parse_target_name(target)):
            progress.show(f"{told['adopted'] + told['failed']} of {told['images']} images")
            if (crid := told.get("crid")) and not as_json:
                why = told.get("message")
                click.echo(printable(f"image {crid}: {why}") if why else crid, err=bool(why))
    if as_json:
        print_json({name: told[name] for name in ("images", "adopted", "failed")})
    if told["failed"]:
        context.exit(EXIT_PARTLY_DONE)
