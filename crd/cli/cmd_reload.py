"""``crctl reload``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.console.program import json_option, print_json


@click.command(name="reload")
@json_option
@socket_option
def reload_(*, as_json: bool) -> None:
    """Have the daemon read its settings again: targets, schedules, retention and limits.

    All of them count from now on or, if anything in the file is wrong, none.

    Exit status: 0 done, 2 the settings are wrong and the old ones stay, 10 daemon unavailable, 12 denied.
    """
    with connect() as daemon:
        found = daemon.call("Reload")
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['targets']} targets")
    if found["waiting"]:
        click.echo(f"Only a new start of the daemon brings: {', '.join(found['waiting'])}")
