"""``crctl``: the client of the daemon."""

from __future__ import annotations

from typing import NoReturn

import click

from crd.cli.daemon import socket_option
from crd.console.program import Lazy, Program, run

COMMANDS = {
    "status": Lazy("crd.cli.cmd_status:status", "Show the daemon, and what is wrong."),
    "reload": Lazy("crd.cli.cmd_reload:reload_", "Have the daemon read its settings again."),
    "targets": Lazy("crd.cli.cmd_targets:targets", "List what is checkpointed and when."),
    "target": Lazy("crd.cli.cmd_target:target", "Add, remove, hold or resume a target."),
    "checkpoint": Lazy("crd.cli.cmd_checkpoint:checkpoint", "Take an image now."),
    "images": Lazy("crd.cli.cmd_images:images", "List images."),
    "show": Lazy("crd.cli.cmd_show:show", "Show an image."),
    "diff": Lazy("crd.cli.cmd_diff:diff", "Show what differs between two images."),
    "run": Lazy("crd.cli.cmd_run:run", "Start a program that can checkpoint itself."),
    "restart": Lazy("crd.cli.cmd_restart:restart", "Queue the restart of an image."),
    "attach": Lazy("crd.cli.cmd_attach:attach", "Sit down at the terminal of restarted tasks."),
    "forget": Lazy("crd.cli.cmd_forget:forget", "Forget images, by name or by the rules."),
    "sweep": Lazy("crd.cli.cmd_sweep:sweep", "Remove what no image needs any more."),
    "pin": Lazy("crd.cli.cmd_pin:pin", "Keep an image from being forgotten."),
    "tag": Lazy("crd.cli.cmd_tag:tag", "Give an image tags, or take some away."),
    "note": Lazy("crd.cli.cmd_note:note", "Note something about an image."),
    "verify": Lazy("crd.cli.cmd_verify:verify", "Check an image, or that it can be restarted."),
    "scrub": Lazy("crd.cli.cmd_scrub:scrub", "Check everything that is stored."),
    "export": Lazy("crd.cli.cmd_export:export_", "Write an image to a file."),
    "import": Lazy("crd.cli.cmd_import:import_", "Take an image from a file."),
    "adopt": Lazy("crd.cli.cmd_adopt:adopt", "Take images in that the catalog has lost."),
    "requests": Lazy("crd.cli.cmd_requests:requests", "List restart requests."),
    "request": Lazy("crd.cli.cmd_request:request", "Show or cancel a restart request."),
    "save-for-shutdown": Lazy("crd.cli.cmd_save_for_shutdown:save_for_shutdown", "What crd-shutdown@.service calls."),
    "check": Lazy("crd.cli.cmd_check:check", "Say what keeps a process from being checkpointed."),
}


@click.group(cls=Program, commands=COMMANDS)
@click.version_option(package_name="crd")
@socket_option
def crctl() -> None:
    """Ask the crd daemon.

    IMAGE is a crid (42), TARGET@latest, TARGET@"10 min ago", TARGET@2026-11-23T10:00, or HOST/42.

    Exit status: 0 done, 1 failed, 2 usage, 3 partly done, 10 daemon unavailable, 11 not found, 12 denied, 13
    unsupported, 14 busy or conflicting.
    """


def main() -> NoReturn:
    """Run ``crctl``."""
    run(crctl)


if __name__ == "__main__":
    main()
