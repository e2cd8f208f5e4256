"""``crctl sweep``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from crd.cli.daemon import connect, socket_option
from crd.console import units
from crd.console.program import json_option, print_json
from crd.errors import EXIT_PARTLY_DONE
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@json_option
@socket_option
@click.pass_context
def sweep(context: click.Context, *, as_json: bool) -> None:
    """Remove what no image needs and could not be removed before, and restart requests that ended long ago.

    What is forgotten is removed at once, unless the store is away; the daemon does this by itself every hour.

    Exit status: 0 done, 1 failed, 3 something had to stay, 10 daemon unavailable, 12 denied.
    """
    with connect() as daemon:
        [swept] = daemon.stream("Sweep")
    hindrance = swept.get("hindrance")
    if as_json:
        print_json(swept | {"hindrance": hindrance})
    else:
        click.echo(_text(swept))
        if hindrance:
            click.echo(printable(f"packs had to stay: {hindrance}"), err=True)
    if hindrance:
        context.exit(EXIT_PARTLY_DONE)


def _text(swept: Mapping[str, Any]) -> str:
    if not any(swept[name] for name in ("images", "packs", "requests")):
        return "There was nothing to remove."
    return (f"{units.size(swept['bytes'])} given back, of {swept['images']} forgotten images and "
            f"{swept['packs']} packs; {swept['requests']} old restart requests dropped")
