"""``crd check``: everything that would keep a process from being checkpointed."""

from __future__ import annotations

from dataclasses import asdict

import click

from crd.console.program import json_option
from crd.console.report import print_report
from crd.native.syscall import kcmp
from crd.target import preflight


@click.command()
@click.argument("pid", type=click.IntRange(min=1))
@json_option
@click.pass_context
def check(context: click.Context, pid: int, *, as_json: bool) -> None:
    """Say everything that would keep process PID and its descendants from being checkpointed; stop nobody.

    Exit status: 0 nothing stands in the way, 11 no such process, 13 something does.
    """
    context.exit(print_report(asdict(preflight.check(pid, kcmp=kcmp)), as_json=as_json))
