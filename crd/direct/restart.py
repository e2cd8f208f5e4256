"""``crd restart``: running tasks from an image, without a daemon."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crd.console.image_file import opened_for_reading, write_pid_file
from crd.console.plan import print_plan
from crd.console.program import json_option
from crd.console.relay import terminal_kept
from crd.console.restart_options import STDIO, STDIO_HELP, force_version_option, tcp_option
from crd.direct.foreground import wait_as_a_shell, wait_at_their_terminal
from crd.direct.linux_cr import linux_cr_option
from crd.text import printable

if TYPE_CHECKING:
    from crd.engine.api import RestartOptions, RestartResult


@click.command()
@click.option("-i", "--input", "image", required=True, type=click.Path(path_type=Path), metavar="FILE|-",
              help="The image: a file, or - for standard input.")
@click.option("--new-pids", "pids", flag_value="new", help="Whatever pids are free, instead of the original ones.")
@click.option("--pidns", "pids", flag_value="namespace", help="The original pids, in a pid namespace of their own.")
@click.option("--root", type=click.Path(path_type=Path), metavar="PID-FILE",
              help="Write the pid of the first task into this file, before the tasks run.")
@click.option("--detach/--wait", "detach", default=None,
              help="Come back when the tasks run, or stay as their parent and exit with the first one's exit status.  "
                   "Without either: --wait with --stdio inherit or pty, else --detach.")
@click.option("--files", type=click.Choice(["keep", "rollback", "fail"]), default="keep", show_default=True,
              help="What is done about open files that have changed since: take them as they are; cut off what they "
                   "have grown by, or put their saved content back, and keep the newer one beside it; or fail.")
@linux_cr_option
@force_version_option
@tcp_option
@click.option("--stdio", type=click.Choice(STDIO),
              help=f"{STDIO_HELP}  With pty, crd relays between its own streams and the terminal as long as it stays; "
                   "with --detach it leaves a process that holds the terminal: crd attach.  Without it: pty.")
@click.option("--plan", is_flag=True, help="Only say what would be made and everything that stands in the way.")
@json_option
@click.pass_context
def restart(context: click.Context, image: Path, *, pids: str | None, root: Path | None, detach: bool | None,
            files: str, linux_cr: str, force_version: bool, tcp: str, stdio: str | None, plan: bool,
            as_json: bool) -> None:
    """Recreate the tasks of an image and let them run on; print the pid of the first.

    With --plan nothing is made, and the exit status is what the restart would fail with.

    Exit status: 0 done, 1 failed, 2 usage, 12 denied, 13 this host cannot restart it, 14 conflicting (a pid is in use,
    a file has changed); with --wait that of the first task, 128 + N if signal N ended it.
    """
    from crd.engine.api import Files, Pids, RestartOptions, Stdio, Tcp
    from crd.engine.api import plan as plan_restart
    from crd.engine.api import restart as recreate

    def confirm(ready: RestartResult) -> None:
        if root:
            write_pid_file(root, ready.root_pid)

    if detach is None:
        detach = stdio not in {Stdio.INHERIT, Stdio.PTY}
    if detach and stdio == Stdio.INHERIT:
        raise click.UsageError("who has the caller's terminal is waited for: --stdio inherit goes with --wait", context)
    options = RestartOptions(pids=Pids(pids or "original"), files=Files(files), tcp=Tcp(tcp),
                             stdio=Stdio(stdio or "pty"), reap=not detach, linux_cr=linux_cr,
                             force_version=force_version)
    with opened_for_reading(image) as fd:
        if plan:
            context.exit(print_plan(asdict(plan_restart(fd, options=options)), as_json=as_json))
        with nullcontext() if detach else terminal_kept():
            result = recreate(fd, options=options, confirm=confirm)
            for note in () if as_json else result.notes:
                click.echo(printable(note), err=True)
            click.echo(json.dumps(asdict(result)) if as_json else result.root_pid)
            if not detach:
                context.exit(_stay(result, options))


def _stay(result: RestartResult, options: RestartOptions) -> int:
    """Wait for the tasks, at their terminal if they have one."""
    from crd.engine.api import Stdio, wait_for_root

    if result.terminals:
        return wait_at_their_terminal(result)
    return wait_as_a_shell(result) if options.stdio == Stdio.INHERIT else wait_for_root(result)
