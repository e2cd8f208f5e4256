"""``crctl checkpoint``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.render import image_summary
from crd.console import units
from crd.console.program import json_option, print_json
from crd.console.progress import Progress
from crd.errors import DaemonUnavailable
from crd.ids import parse_tag, parse_target_name

if TYPE_CHECKING:
    from collections.abc import Iterable


@click.command()
@click.argument("target", required=False)
@click.option("--pid", type=click.IntRange(min=1), help="A process, instead of a target.")
@click.option("--kill", "after", flag_value="kill", help="Kill the process once its image is safe.")
@click.option("--stop", "after", flag_value="stop", help="Leave the process stopped (SIGSTOP).")
@click.option("--tag", metavar="TAG", help="A word that says what the image is, as of crctl tag.")
@click.option("--no-wait", is_flag=True, help="Come back once it has begun.")
@json_option
@socket_option
def checkpoint(target: str | None, *, pid: int | None, after: str | None, tag: str | None, no_wait: bool,
               as_json: bool) -> None:
    """Take an image of TARGET or of a process now, and print its crid.

    Exit status: 0 done, 1 failed, 2 usage, 10 daemon unavailable, 11 no such target or process, 12 denied, 13 it holds
    what cannot be checkpointed, 14 it is being checkpointed already.
    """
    if (target is None) == (pid is None):
        raise click.UsageError("give either TARGET or --pid", click.get_current_context())
    wanted = {"target": target and parse_target_name(target), "pid": pid, "after": after, "tag": tag and parse_tag(tag),
              "wait": not no_wait}
    with connect() as daemon:
        if no_wait:
            begun = daemon.call("Checkpoint", **wanted)
            if as_json:
                print_json(begun)
            return
        image = _follow(daemon.stream("Checkpoint", **wanted))
    if as_json:
        print_json(image)
        return
    click.echo(image["crid"])
    if sys.stderr.isatty():
        click.echo(image_summary(image), err=True)


def _follow(replies: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Show the stages; return the image."""
    with Progress() as progress:
        for reply in replies:
            if image := reply.get("image"):
                return dict(image)
            progress.show(f"{reply.get('stage') or 'working'} {units.size(reply.get('bytes') or 0)}")
    raise DaemonUnavailable("the daemon finished without an image", hint="Its log says why: journalctl -u crd.")
