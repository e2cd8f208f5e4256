"""``crd restart``: running tasks from an image, without a daemon."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crd.console.image_file import opened_for_reading, write_pid_file
from crd.console.plan import print_plan
from crd.console.program import json_option
from crd.console.restart_options import tcp_option
from crd.direct.linux_cr import linux_cr_option

if TYPE_CHECKING:
    from crd.engine.api import RestartResult


@click.command()
@click.option("-i", "--input", "image", required=True, type=click.Path(path_type=Path), metavar="FILE|-",
              help="The image: a file, or - for standard input.")
@click.option("--new-pids", "pids", flag_value="new", help="Whatever pids are free, instead of the original ones.")
@click.option("--pidns", "pids", flag_value="namespace", help="The original pids, in a pid namespace of their own.")
@click.option("--root", type=click.Path(path_type=Path), metavar="PID-FILE",
              help="Write the pid of the first task into this file, before the tasks run.")
@click.option("--detach/--wait", "detach", default=True, show_default=True,
              help="Come back when the tasks run, or stay as their parent and exit with the first one's exit status.")
@click.option("--files", type=click.Choice(["keep", "rollback", "fail"]), default="keep", show_default=True,
              help="What is done about open files that have changed since: take them as they are; cut off what they "
                   "have grown by, or put their saved content back, and keep the newer one beside it; or fail.")
@linux_cr_option
@tcp_option
@click.option("--plan", is_flag=True, help="Only say what would be made and everything that stands in the way.")
@json_option
@click.pass_context
def restart(context: click.Context, image: Path, *, pids: str | None, root: Path | None, detach: bool, files: str,
            linux_cr: str, tcp: str, plan: bool, as_json: bool) -> None:
    """Recreate the tasks of an image and let them run on; print the pid of the first.

    With --plan nothing is made, and the exit status is what the restart would fail with.

    Exit status: 0 done, 1 failed, 2 usage, 12 denied, 13 this host cannot restart it, 14 conflicting (a pid is in use,
    a file has changed); with --wait that of the first task, 128 + N if signal N ended it.
    """
    from crd.engine.api import Files, Pids, RestartOptions, Tcp, wait_for_root
    from crd.engine.api import plan as plan_restart
    from crd.engine.api import restart as recreate

    def confirm(ready: RestartResult) -> None:
        if root:
            write_pid_file(root, ready.root_pid)

    options = RestartOptions(pids=Pids(pids or "original"), files=Files(files), tcp=Tcp(tcp), reap=not detach,
                             linux_cr=linux_cr)
    with opened_for_reading(image) as fd:
        if plan:
            context.exit(print_plan(asdict(plan_restart(fd, options=options)), as_json=as_json))
        result = recreate(fd, options=options, confirm=confirm)
    for note in () if as_json else result.notes:
        click.echo(note, err=True)
    click.echo(json.dumps(asdict(result)) if as_json else result.root_pid)
    if not detach:
        context.exit(wait_for_root(result))
