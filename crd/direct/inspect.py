"""``crd inspect``: what an image of any Linux-CR generation, or of crd, holds."""

from __future__ import annotations

import json
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import click

from crd.console.program import json_option
from crd.errors import EXIT_FAILED, ImageError
from crd.image.generations import Generation
from crd.image.inspect import inspect as inspect_image
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.image.inspection import Inspection


@click.command()
@click.argument("image", type=click.File("rb"), metavar="FILE|-")
@click.option("--records", is_flag=True, help="List every record with its offset and what it says.")
@json_option
def inspect(image: BinaryIO, *, records: bool, as_json: bool) -> None:
    """Show what the image in FILE (or on standard input) holds.

    Reads images of every Linux-CR generation and of crd.  A broken image is shown as far as it can be read.

    Exit status: 0 the image is whole, 1 it is broken or empty, 2 usage, 13 it is no image that crd knows.
    """
    try:
        inspection = inspect_image(image, contents=records)  # type: ignore[arg-type]  # a binary file has readinto
    except OSError as error:
        raise ImageError(f"{image.name} cannot be read: {error.strerror}") from error
    if as_json:
        click.echo(json.dumps(inspection.to_json(), indent=2))
    else:
        for table in _tables(inspection, all_records=records):
            if table.rows:
                _draw(table)
    if not inspection.whole:
        sys.exit(EXIT_FAILED)


class _Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]


def _tables(inspection: Inspection, *, all_records: bool) -> Iterator[_Table]:
    yield _Table("Image", ("", ""), list(_summary(inspection)))
    yield _Table("Tasks", ("pid", "parent", "process", "group", "session", "name", "state"),
                 [(task.pid, task.parent_pid, task.thread_group, task.process_group, task.session, task.comm,
                   _state(inspection, task.state)) for task in inspection.tasks])
    yield _Table("Memory", ("pid", "range", "flags", "offset", "pages", "path"),
                 [(area.pid, f"{area.start:x}-{area.end:x}", area.flags, f"{area.offset:x}", area.pages, area.path)
                  for area in inspection.memory])
    yield _Table("Files", ("pid", "fd", "flags", "position", "path"),
                 [(file.pid, None if file.fd < 0 else file.fd, None if file.flags is None else f"{file.flags:#o}",
                   file.position, file.path)
                  for file in inspection.files])
    if all_records:
        yield _Table("Records", ("offset", "type", "name", "payload bytes", "content"),
                     [(entry.offset, entry.type, entry.name, entry.payload_bytes, entry.content or "")
                      for entry in inspection.records])
    else:
        counts = Counter(entry.name for entry in inspection.records)
        yield _Table("Records", ("name", "count"), list(counts.items()))


def _summary(inspection: Inspection) -> Iterator[tuple[str, object]]:
    yield "generation", f"{inspection.generation} ({inspection.versions}), {inspection.byte_order}-endian"
    if header := inspection.header:
        yield "kernel", f"{header.kernel}, format revision {header.rev}, flags {header.flags:#x}"
        yield "taken", _time(header.time)
        yield "host", f"{header.release} {header.version} {header.machine}"
    yield "bytes", inspection.image_bytes
    if inspection.trailing_bytes:
        yield "trailing", f"{inspection.trailing_bytes} bytes behind the tail"
    for note in inspection.notes:
        yield "note", note
    yield "whole", "no: " + inspection.broken.message if inspection.broken else "yes"


_STATES = {0: "running", 1: "sleeping", 2: "frozen or waiting", 4: "stopped", 8: "traced", 16: "zombie", 32: "dead",
           64: "dead"}
"""Task states of the kernels that wrote the images (spec section 3.2)."""
_WAKEKILL = 128
_STATES_OF_CRD = {**_STATES, 32: "zombie"}
"""As kernels from 3.14 on number them."""


def _state(inspection: Inspection, state: int | None) -> str | None:
    """Return a task's state in words, with its number."""
    if state is None:
        return None
    words = _STATES_OF_CRD if inspection.generation == Generation.CRD else _STATES
    return f"{words.get(state & ~_WAKEKILL, 'unknown')} ({state})"


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s"


def _shown(value: object) -> str:
    return "-" if value is None else printable(str(value))


def _draw(table: _Table) -> None:
    rows = [tuple(map(_shown, row)) for row in table.rows]
    if sys.stdout.isatty():
        _draw_rich(table, rows)
        return
    click.echo(table.title)
    lines = [table.columns, *rows] if any(table.columns) else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _draw_rich(table: _Table, rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*table.columns, title=table.title, title_justify="left", show_header=any(table.columns))
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)
