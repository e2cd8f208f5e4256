"""``crctl images``."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from crd.cli.daemon import listed, socket_option
from crd.cli.render import IMAGE_COLUMNS, image_row
from crd.console.program import json_option, print_json_list
from crd.console.table import print_table
from crd.ids import parse_target_name, parse_time


@click.command()
@click.argument("target", required=False)
@click.option("--tag", metavar="TAG", help="Only those that have this tag.")
@click.option("--since", metavar="TIME", help='Taken at this time (2026-11-23T10:00, "10 min ago") or later.')
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the newest N.")
@json_option
@socket_option
def images(target: str | None, *, tag: str | None, since: str | None, limit: int | None, as_json: bool) -> None:
    """List images, of TARGET or of all, the newest first.

    Exit status: 0 done, 2 usage, 10 daemon unavailable, 12 denied.
    """
    earliest = parse_time(since, now=datetime.now(UTC)).isoformat() if since else None
    found = listed("ListImages", "images", limit, target=target and parse_target_name(target), tag=tag, since=earliest)
    if as_json:
        print_json_list(found)
    else:
        print_table(IMAGE_COLUMNS, map(image_row, found))
