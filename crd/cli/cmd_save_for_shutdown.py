"""``crctl save-for-shutdown``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.console.program import json_option, print_json
from crd.errors import EXIT_PARTLY_DONE
from crd.text import printable


@click.command()
@click.argument("unit")
@json_option
@socket_option
@click.pass_context
def save_for_shutdown(context: click.Context, unit: str, *, as_json: bool) -> None:
    """Save, and end, the targets with at_shutdown that live in UNIT, if the host is going down; else do nothing.

    crd-shutdown@UNIT.service does this before systemd stops the unit.

    Exit status: 0 done, 1 failed, 3 some were not saved, 10 daemon unavailable, 12 denied.
    """
    with connect() as daemon:
        [reply] = daemon.stream("SaveForShutdown", unit=unit)
    targets = reply["targets"]
    if as_json:
        print_json(targets)
    else:
        for target in targets:
            outcome = f"image {target['crid']}" if target.get("crid") else f"not saved: {target['message']}"
            click.echo(printable(f"{target['target']}: {outcome}"))
    if not all(target.get("crid") for target in targets):
        context.exit(EXIT_PARTLY_DONE)
