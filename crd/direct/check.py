"""``crd check``: everything that would keep a process from being checkpointed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from crd.errors import EXIT_UNSUPPORTED
from crd.native.syscall import kcmp
from crd.target import preflight

if TYPE_CHECKING:
    from crd.target.model import CheckReport


@click.command()
@click.argument("pid", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
@click.pass_context
def check(context: click.Context, pid: int, *, as_json: bool) -> None:
    """Say everything that would keep process PID and its descendants from being checkpointed; stop nobody.

    Exit status: 0 nothing stands in the way, 11 no such process, 13 something does.
    """
    report = preflight.check(pid, kcmp=kcmp)
    click.echo(json.dumps(asdict(report)) if as_json else _text(report))
    if report.obstacles:
        context.exit(EXIT_UNSUPPORTED)


def _text(report: CheckReport) -> str:
    title = f"{report.pid} ({report.comm})"
    if not report.obstacles:
        return "\n".join([f"{title} can be checkpointed.", *(f"  {note}." for note in report.notes)])
    count = "one obstacle" if len(report.obstacles) == 1 else f"{len(report.obstacles)} obstacles"
    lines = [f"{title} cannot be checkpointed: {count}."]
    for obstacle in report.obstacles:
        lines += ["", f"  {obstacle.object}", f"    {obstacle.reason}.", f"    -> {obstacle.remedy}"]
    return "\n".join(lines)
