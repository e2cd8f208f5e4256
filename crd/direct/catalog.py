"""``crd catalog``: copies of the catalog."""

from __future__ import annotations

from pathlib import Path

import click

from crd.console.program import json_option, print_json

_config_option = click.option("--config", type=click.Path(path_type=Path),
                              help="Settings file (default: /etc/crd/crd.toml).")
_file_argument = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def catalog() -> None:
    """Back up or restore the catalog, if it is a file of SQLite; PostgreSQL has pg_dump(1) and pg_restore(1).

    Exit status: 0 done, 1 failed, 2 wrong settings, 14 the daemon works on it.
    """


@catalog.command()
@_file_argument
@_config_option
@json_option
def backup(file: Path, *, config: Path | None, as_json: bool) -> None:
    """Write a copy of the catalog to FILE, of one moment, while the daemon works on.

    Images are not in it: they are in the archive.

    Exit status: 0 done, 1 failed, 2 wrong settings.
    """
    from crd.catalog.backup import back_up
    from crd.settings.load import load

    back_up(load(config).catalog_url, file)
    if as_json:
        print_json({"file": str(file), "bytes": file.stat().st_size})


@catalog.command()
@_file_argument
@_config_option
@json_option
def restore(file: Path, *, config: Path | None, as_json: bool) -> None:
    """Put the copy in FILE in the place of the catalog, while the daemon is stopped.

    What is there now stays beside it.  Requests that the copy has not seen end are not carried out again.  Images that
    were taken since are taken into the catalog by crctl adopt.

    Exit status: 0 done, 1 failed, 2 wrong settings, 14 the daemon works on it.
    """
    from crd.catalog import backup as backups
    from crd.settings.load import load
    from crd.settings.state import held_state

    settings = load(config)
    with held_state(settings.daemon.state_dir):
        moved = backups.restore(settings.catalog_url, file)
    if as_json:
        print_json({"file": str(file), "moved_to": str(moved) if moved else None})
    elif moved:
        click.echo(f"What was there is now {moved}")
