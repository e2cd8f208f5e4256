"""What stands in the way of a checkpoint, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from crd.console.program import print_json
from crd.errors import EXIT_UNSUPPORTED
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def print_report(report: Mapping[str, Any], *, as_json: bool) -> int:
    """Print a CheckReport (``crd.target.model``, the reply of Check), and return the exit status."""
    if as_json:
        print_json(report)
    else:
        for line in _lines(report):
            click.echo(printable(line))
    return EXIT_UNSUPPORTED if report["obstacles"] else 0


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    title, obstacles = f"{report['pid']} ({report['comm']})", report["obstacles"]
    if not obstacles:
        yield f"{title} can be checkpointed."
        yield from (f"  {note}." for note in report["notes"])
        return
    yield f"{title} cannot be checkpointed: {'one obstacle' if len(obstacles) == 1 else f'{len(obstacles)} obstacles'}."
    for obstacle in obstacles:
        yield from ("", f"  {obstacle['object']}", f"    {obstacle['reason']}.", f"    -> {obstacle['remedy']}")
