"""``crd config``: the settings file."""

from __future__ import annotations

from pathlib import Path

import click

from crd.console.program import json_option, print_json


@click.group()
def config() -> None:
    """Look at the settings file.

    Exit status: 0 all is well, 2 something is wrong.
    """


@config.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@json_option
def check(file: Path | None, *, as_json: bool) -> None:
    """Read FILE (default: /etc/crd/crd.toml), with what the environment overrides, as the daemon would.

    Everything that is wrong is told, with its line and with what would be right.

    Exit status: 0 all is well, 2 something is wrong.
    """
    from crd.settings.load import load

    settings = load(file)
    if as_json:
        print_json(settings.model_dump(mode="json"))
    else:
        targets = ", ".join(sorted(settings.targets)) or "none; crctl target add makes some"
        click.echo(f"All is well.  Targets: {targets}")
