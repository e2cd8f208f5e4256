"""``crd key``: keys that images are encrypted with."""

from __future__ import annotations

from pathlib import Path

import click

from crd.console.program import json_option, print_json


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--new", is_flag=True, help="Make the file, with a new key; it must not be there yet.")
@json_option
def key(file: Path, *, new: bool, as_json: bool) -> None:
    """Print the id of the key in FILE, by which messages name it.

    Name FILE in encryption.keys.  To change keys, put the new one first and leave the old one until no image needs it.
    Keep a copy elsewhere: without its key an image is lost.

    Exit status: 0 done, 2 FILE holds no key, may be read by others, or (--new) is there already.
    """
    from crd.archive.keys import load_key, make_key

    found = make_key(file) if new else load_key(file)
    if as_json:
        print_json({"key_id": found.id})
    else:
        click.echo(found.id)
