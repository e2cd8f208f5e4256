"""``crctl forget``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import checked_reference
from crd.cli.render import VERDICT_COLUMNS, verdict_row
from crd.console.program import json_option, print_json
from crd.console.table import print_table
from crd.errors import EXIT_PARTLY_DONE
from crd.ids import parse_target_name


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...", callback=checked_reference)
@click.option("--target", metavar="TARGET", help="What the rules of this target do not want.")
@click.option("--dry-run", is_flag=True, help="Only say what would be forgotten, and why the rest is kept.")
@json_option
@socket_option
@click.pass_context
def forget(context: click.Context, images: tuple[str, ...], *, target: str | None, dry_run: bool,
           as_json: bool) -> None:
    """Forget the images that are named, or else what the rules of a target, or of all, do not want.

    An image that is named is forgotten whatever the rules say, unless it is pinned.  The daemon applies the rules by
    itself after each checkpoint.

    Exit status: 0 done, 1 failed, 2 usage, 3 some are still there, 10 daemon unavailable, 11 no such image or target,
    12 denied, 13 another host has it, 14 an image is pinned, being read or to be restarted.
    """
    if images and target is not None:
        raise click.UsageError("name either images or --target", context)
    with connect() as daemon:
        [reply] = daemon.stream("Forget", references=list(images) or None, target=target and parse_target_name(target),
                                dry_run=dry_run)
    verdicts = reply["verdicts"]
    if as_json:
        print_json(verdicts)
    else:
        print_table(VERDICT_COLUMNS, (verdict_row(verdict, dry_run=dry_run) for verdict in verdicts))
    if any(verdict.get("error") for verdict in verdicts):
        context.exit(EXIT_PARTLY_DONE)
