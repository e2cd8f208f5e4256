"""``crd``: the daemon, and the commands that need none."""

from __future__ import annotations

from typing import NoReturn

import click

from crd.console.program import Lazy, Program, run

COMMANDS = {
    "run": Lazy("crd.daemon.main:run", "Run the daemon in the foreground."),
    "checkpoint": Lazy("crd.direct.checkpoint:checkpoint", "Write the image of a running process."),
    "restart": Lazy("crd.direct.restart:restart", "Turn an image into running tasks."),
    "attach": Lazy("crd.direct.attach:attach", "Sit down at the terminal of restarted tasks."),
    "check": Lazy("crd.direct.check:check", "Say what keeps a process from being checkpointed."),
    "features": Lazy("crd.direct.features:features", "Say what this kernel and these privileges offer."),
    "config": Lazy("crd.direct.config:config", "Check the settings file."),
    "catalog": Lazy("crd.direct.catalog:catalog", "Back up or restore the catalog."),
    "key": Lazy("crd.direct.key:key", "Make a key for encryption, or say which one a file holds."),
    "inspect": Lazy("crd.direct.inspect:inspect", "Show what an image holds."),
    "core": Lazy("crd.direct.core:core", "Write an ELF core of a task of an image."),
}


@click.group(cls=Program, commands=COMMANDS)
@click.version_option(package_name="crd")
def crd() -> None:
    """Checkpoint running processes and restart them: the daemon, and the same without a daemon.

    Exit status: 0 done, 1 failed, 2 usage, 11 not found, 12 denied, 13 unsupported, 14 busy or conflicting.
    """


def main() -> NoReturn:
    """Run ``crd``."""
    run(crd)


if __name__ == "__main__":
    main()
