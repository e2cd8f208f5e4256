"""``crctl check``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.console.program import json_option
from crd.console.report import print_report


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
    context.exit(print_report(report, as_json=as_json))
