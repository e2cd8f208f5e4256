"""``crd core``: an ELF core of a task of an image."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from crd.console.core_file import core_summary, in_any_order
from crd.console.image_file import STANDARD_STREAM, opened_for_reading, opened_for_writing
from crd.console.program import json_option
from crd.image.core.writer import write_core
from crd.target.vdso import own_vdso


@click.command()
@click.option("-i", "--input", "image", required=True, type=click.Path(path_type=Path), metavar="FILE|-",
              help="The image.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE|-",
              help="Where to: a file, which is made or replaced once the core is whole, or - for standard output.")
@click.option("--task", "pid", type=click.IntRange(min=1), metavar="PID", help="Of which, if not of the first.")
@json_option
def core(image: Path, *, output: Path, pid: int | None, as_json: bool) -> None:
    """Write an ELF core of a task of an image, which gdb PROGRAM CORE opens.

    As in cores of the kernel, what is as it was in files (the program, its libraries) and what the program keeps out of
    cores (MADV_DONTDUMP) is not in it.  Into a pipe it goes by way of a temporary file, in TMPDIR or /var/tmp.

    Prints figures on standard error; with --json as one value on standard output (on standard error if that is where
    the core goes).

    Exit status: 0 done, 1 failed, or the image is broken, 2 usage, 11 the image has no such task, 13 a Linux-CR kernel
    or another version of crd wrote it.
    """
    with opened_for_reading(image) as fd, open(fd, "rb", closefd=False) as file, opened_for_writing(output) as to:
        with in_any_order(to) as place:
            written = write_core(file, place, pid, own_vdso())
        to.commit()
    if as_json:
        click.echo(json.dumps(written._asdict()), file=sys.stderr if output == STANDARD_STREAM else sys.stdout)
    else:
        click.echo(core_summary(written._asdict(), output), err=True)
