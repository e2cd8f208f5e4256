"""``crctl request``: show, cancel."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.cli.render import request_fields
from crd.console.program import json_option, print_json
from crd.console.table import print_fields


@click.group()
def request() -> None:
    """Show or cancel a restart request.

    Exit status: 0 done, 2 usage, 10 daemon unavailable, 11 no such request, 12 denied, 14 too late to cancel.
    """


_number_argument = click.argument("number", type=click.IntRange(min=1), metavar="N")


@request.command()
@_number_argument
@json_option
@socket_option
def show(number: int, *, as_json: bool) -> None:
    """Show what became of request N.

    Exit status: 0 done, 10 daemon unavailable, 11 no such request, 12 denied.
    """
    _call("GetRequest", number, as_json=as_json)


@request.command()
@_number_argument
@json_option
@socket_option
def cancel(number: int, *, as_json: bool) -> None:
    """Cancel request N if it is still queued.

    Exit status: 0 done, 10 daemon unavailable, 11 no such request, 12 denied, 14 it is too late.
    """
    _call("CancelRequest", number, as_json=as_json)


def _call(method: str, number: int, *, as_json: bool) -> None:
    with connect() as daemon:
        found = daemon.call(method, number=number)["request"]
    if as_json:
        print_json(found)
    else:
        print_fields(request_fields(found))
