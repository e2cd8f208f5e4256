"""``crctl status``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.render import status_fields
from crd.console.program import json_option, print_json
from crd.console.table import print_fields


@click.command()
@json_option
@socket_option
def status(*, as_json: bool) -> None:
    """Show the daemon, its engine, archive and queue, and what is due next.

    Exit status: 0 it is there, 10 it is not, 12 denied.
    """
    with connect() as daemon:
        found = daemon.call("GetStatus")
    if as_json:
        print_json(found)
    else:
        print_fields(status_fields(found))
