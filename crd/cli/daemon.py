"""How commands reach the daemon."""

from __future__ import annotations

from pathlib import Path

import click

from crd.api.client import SOCKET_VARIABLE, Client


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
    return Client(click.get_current_context().find_root().obj)
