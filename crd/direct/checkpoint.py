"""``crd checkpoint``: one image of a running process, without a daemon."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crd.console import units
from crd.console.image_file import STANDARD_STREAM, opened_for_writing
from crd.console.program import json_option
from crd.direct.linux_cr import linux_cr_option
from crd.text import printable

if TYPE_CHECKING:
    from crd.engine.api import CheckpointResult

CRID_FILE_VARIABLE = "CRD_ENGINE__CRID_FILE"


def _size(text: str) -> int:
    from crd.settings.units import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("pid", type=click.IntRange(min=1))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE|-",
              help="Where to: a file, which is made or replaced once the image is safe, or - for standard output.")
@click.option("--kill", "after", flag_value="kill", help="Kill all its processes once the image is safe.")
@click.option("--stop", "after", flag_value="stop", help="Leave them stopped (SIGSTOP).")
@click.option("--no-tree", "tree", is_flag=True, default=True, flag_value=False,
              help="Save the process alone, without its descendants.")
@click.option("--save-files", "save_files_bytes", type=_size, default="0", metavar="SIZE",
              help="Save files that it can write to, up to this size each (16MiB): crd restart --files rollback puts "
                   "them back.")
@click.option("--engine", type=click.Choice(["auto", "kernel", "userspace"]), default="auto", show_default=True,
              help="What takes the image: a Linux-CR kernel's system call, or crd itself.")
@linux_cr_option
@json_option
def checkpoint(pid: int, *, output: Path, after: str | None, tree: bool, save_files_bytes: int, engine: str,
               linux_cr: str, as_json: bool) -> None:
    """Write an image of process PID and all its descendants; they run on.

    Prints crid and figures on standard error; with --json as one value on standard output (on standard error if that
    is where the image goes).

    Exit status: 0 done, 1 failed, 2 usage, 11 no such process, 12 denied, 13 it holds what cannot be checkpointed, 14
    it is being traced.
    """
    from crd.engine.api import After, CheckpointOptions
    from crd.engine.api import checkpoint as take
    from crd.engine.crid import DEFAULT_PATH, CridCounter

    crids = CridCounter(Path(os.environ.get(CRID_FILE_VARIABLE) or DEFAULT_PATH))
    options = CheckpointOptions(after=After(after or "run"), engine=engine, linux_cr=linux_cr, tree=tree,
                                save_files_bytes=save_files_bytes)
    with opened_for_writing(output) as image:
        result = take(pid, image.fd, options=options, crids=crids, commit=lambda _: image.commit())
    if as_json:
        click.echo(json.dumps(asdict(result)), file=sys.stderr if output == STANDARD_STREAM else sys.stdout)
    else:
        click.echo("\n".join([_figures(result), *map(printable, result.lost)]), err=True)


def _figures(result: CheckpointResult) -> str:
    from crd.engine.api import KERNEL

    tasks = f"{result.tasks} task{'s' * (result.tasks != 1)}, {result.threads} thread{'s' * (result.threads != 1)}"
    size = "" if result.image_bytes is None else f"{units.size(result.image_bytes)}, "
    memory = f"{units.size(result.memory_bytes)} of memory, " if result.engine != KERNEL else ""
    return (f"crid {result.crid}: pid {result.pid} ({printable(result.comm)}), {tasks}, {size}{memory}"
            f"stopped for {units.duration(result.stop_seconds)}, took {units.duration(result.duration_seconds)}")
