"""``crctl status``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.render import problem_text, status_fields
from crd.console.program import json_option, print_json
from crd.console.table import print_fields
from crd.errors import EXIT_PARTLY_DONE


@click.command()
@json_option
@socket_option
@click.pass_context
def status(context: click.Context, *, as_json: bool) -> None:
    """Show the daemon, its engine, archive and queue, what is due next, and all that is wrong.

    Exit status: 0 all is well, or there are only warnings, 3 something is wrong, 10 the daemon is not there, 12 denied.
    """
    with connect() as daemon:
        found = daemon.call("GetStatus")
    if as_json:
        print_json(found)
    else:
        print_fields(status_fields(found))
        for problem in found["problems"]:
            click.echo(problem_text(problem))
    if any(problem["level"] == "error" for problem in found["problems"]):
        context.exit(EXIT_PARTLY_DONE)
