"""``crctl targets``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.render import TARGET_COLUMNS, target_row
from crd.console.program import json_option, print_json
from crd.console.table import print_table


@click.command()
@json_option
@socket_option
def targets(*, as_json: bool) -> None:
    """List what is checkpointed and when, what came of it last and when it is due next.

    Exit status: 0 done, 10 daemon unavailable, 12 denied.
    """
    with connect() as daemon:
        found = daemon.call("ListTargets")["targets"]
    if as_json:
        print_json(found)
    else:
        print_table(TARGET_COLUMNS, map(target_row, found))
