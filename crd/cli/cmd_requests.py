"""``crctl requests``."""

from __future__ import annotations

import click

from crd.cli.daemon import listed, socket_option
from crd.cli.render import REQUEST_COLUMNS, request_row
from crd.console.program import json_option, print_json_list
from crd.console.table import print_table


@click.command()
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the newest N.")
@json_option
@socket_option
def requests(*, limit: int | None, as_json: bool) -> None:
    """List restart requests and what became of them, the newest first.

    Exit status: 0 done, 10 daemon unavailable, 12 denied.
    """
    found = listed("ListRequests", "requests", limit)
    if as_json:
        print_json_list(found)
    else:
        print_table(REQUEST_COLUMNS, map(request_row, found))
