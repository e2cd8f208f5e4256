"""``crd attach``: at the terminal of restarted tasks, without a daemon."""

from __future__ import annotations

import click

from crd.console.attach import attach as sit_down
from crd.console.attach import key_option


@click.command()
@click.argument("pid", type=click.IntRange(min=1))
@key_option
def attach(pid: int, *, key: bytes) -> None:
    """Sit down at the terminal of restarted process PID: what crd restart --stdio pty --detach made.

    As crctl attach; only for who restarted it.

    Exit status: 0 the first task has ended, or the key was typed; 1 failed, 2 usage, 11 no such process, or no
    terminal that crd holds, 12 denied, 14 somebody else took the seat.
    """
    from crd.engine.terminals import held_terminal

    def ask(connection: int) -> int:
        with held_terminal(pid) as terminal:
            terminal.give_to(connection)
        return pid

    sit_down(ask, key)
