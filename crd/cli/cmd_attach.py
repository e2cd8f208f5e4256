"""``crctl attach``."""

from __future__ import annotations

import click

from crd.cli.daemon import connect, socket_option
from crd.console.attach import attach as sit_down
from crd.console.attach import key_option


@click.command()
@click.argument("pid", required=False, type=click.IntRange(min=1))
@click.option("--request", type=click.IntRange(min=1), metavar="N", help="Of whose first task, instead of a pid.")
@key_option
@socket_option
@click.pass_context
def attach(context: click.Context, pid: int | None, *, request: int | None, key: bytes) -> None:
    """Sit down at the terminal of restarted process PID: what crctl restart --stdio pty made.

    What was said there since is shown first (the last 64 KiB).  Closing crctl, or typing the key, leaves the tasks
    running.  Whoever attaches later takes the seat.

    Exit status: 0 the first task has ended, or the key was typed; 1 failed, 2 usage, 10 daemon unavailable, 11 no such
    process or request, or no terminal that crd holds, 12 denied, 14 somebody else took the seat.
    """
    if (pid is None) == (request is None):
        raise click.UsageError("name either a PID or --request", context)
    attach_by_daemon(key, pid=pid, request=request)


def attach_by_daemon(key: bytes, *, pid: int | None = None, request: int | None = None) -> None:
    """Ask the daemon for the terminal, and sit down at it."""
    def ask(connection: int) -> int:
        with connect() as daemon:
            found: int = daemon.call("Attach", pid=pid, request=request, connection=connection)["pid"]
            return found

    sit_down(ask, key)
