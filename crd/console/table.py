"""Tables: drawn on a terminal, plain aligned columns in a pipe or a file."""

from __future__ import annotations

import sys
from itertools import islice
from typing import TYPE_CHECKING

import click

from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_ROWS_AT_ONCE = 500


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under the names of their columns; None is shown as a dash.

    Rows that come one after the other are printed some hundreds at a time; columns only ever get wider.
    """
    cells = (tuple(map(_cell, row)) for row in rows)
    part = list(islice(cells, _ROWS_AT_ONCE))
    widths = [0] * len(columns)
    lines = [tuple(map(str.upper, columns)), *part]
    while lines:
        if sys.stdout.isatty():
            _draw(columns, part)
        else:
            widths = [max(width, *map(len, column)) for width, column in zip(widths, zip(*lines, strict=True),
                                                                            strict=True)]
            for line in lines:
                click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        lines = part = list(islice(cells, _ROWS_AT_ONCE))


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values, one pair a line."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        click.echo(f"{name.ljust(width)}  {_cell(value)}")


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else printable(str(value))


def _draw(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)
