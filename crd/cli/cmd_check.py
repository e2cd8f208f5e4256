"""``crctl check``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.render import report_text
from crd.console.program import json_option, print_json
from crd.errors import EXIT_UNSUPPORTED


@click.command()
@click.argument("pid", type=click.IntRange(min=1))
@json_option
@socket_option
@click.pass_context
def check(context: click.Context, pid: int, *, as_json: bool) -> None:
    """Say everything that would keep process PID from being checkpointed; stop nobody.

    Exit status: 0 nothing stands in the way, 10 daemon unavailable, 11 no such process, 12 denied, 13 something does.
    """
    with connect() as daemon:
        report = daemon.call("Check", pid=pid)
    if as_json:
        print_json(report)
    else:
        click.echo(report_text(report))
    if report["obstacles"]:
        context.exit(EXIT_UNSUPPORTED)
