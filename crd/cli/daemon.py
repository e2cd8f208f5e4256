"""How commands reach the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crd.api.client import SOCKET_VARIABLE, Client

if TYPE_CHECKING:
    from collections.abc import Iterator


def _remember(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.find_root().obj = path


socket_option = click.option(
    "--socket", type=click.Path(path_type=Path), metavar="PATH", expose_value=False, callback=_remember,
    help=f"Of the daemon, if not {SOCKET_VARIABLE} or /run/crd/crd.sock.")


def connect() -> Client:
    """Connect to the daemon that the command line or the environment names.

    Raises:
        DaemonUnavailable, AccessDenied: as ``Client``.
    """
    context = click.get_current_context()
    as_json = context.params.get("as_json")  # then what is said beside the result is JSON, too
    return Client(context.find_root().obj, unheard=None if as_json else _say_that_we_wait)


def _say_that_we_wait(path: Path) -> None:
    click.echo(f"The daemon at {path} does not answer yet, maybe it cannot start: journalctl -u crd.  Waiting for it.",
               err=True)


def listed(method: str, what: str, limit: int | None, **parameters: Any) -> Iterator[dict[str, Any]]:
    """Yield what a method lists, page by page, each by a connection of its own: a pager may take its time.

    Args:
        method: of ``io.crd``, with the parameters limit and cursor.
        what: it lists, as its reply names it.
        limit: at most so many; None: all.
        parameters: the others.

    Raises:
        CrdError: as ``Client.call``.
    """
    cursor: str | None = None
    while True:
        with connect() as daemon:
            reply = daemon.call(method, **parameters, limit=limit, cursor=cursor)
        yield from reply[what]
        cursor = reply.get("cursor")
        if limit is not None:
            limit -= len(reply[what])
        if cursor is None or limit == 0:
            return
