"""The plan of a restart, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from crd.console.program import print_json
from crd.console.table import print_table
from crd.errors import CrdError
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping


def print_plan(plan: Mapping[str, Any], *, as_json: bool) -> int:
    """Print what a restart would make and what stands in its way; return the exit status: that of the first clash."""
    clashes = plan["clashes"]
    if as_json:
        print_json(plan)
    else:
        print_table(("makes", "name", "how"), [(made["kind"], made["name"], made["how"]) for made in plan["makes"]])
        for note in plan["notes"]:
            click.echo(f"\nnote: {printable(note)}")
        click.echo(f"\n{_verdict(len(clashes))}")
        for clash in clashes:
            click.echo(f"\n  {printable(clash['message'])}")
            if clash["hint"]:
                click.echo(f"    -> {printable(clash['hint'])}")
    return CrdError.from_json(clashes[0]).exit_status if clashes else 0


def _verdict(clashes: int) -> str:
    if not clashes:
        return "Nothing stands in the way."
    return "One thing stands in the way:" if clashes == 1 else f"{clashes} things stand in the way:"
