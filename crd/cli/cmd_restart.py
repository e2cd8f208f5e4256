"""``crctl restart``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from crd.cli.cmd_attach import attach_by_daemon
from crd.cli.daemon import connect, socket_option
from crd.cli.image_argument import image_argument
from crd.console.attach import DETACH_KEY, need_terminal
from crd.console.plan import print_plan
from crd.console.program import json_option, print_json
from crd.console.progress import Progress
from crd.console.restart_options import STDIO, STDIO_HELP, force_version_option, tcp_option
from crd.errors import CrdError, TerminalNotHeld

if TYPE_CHECKING:
    from crd.api.client import Client


@click.command()
@image_argument
@click.option("--new-pids", "pids", flag_value="new", help="Whatever pids are free, instead of the original ones.")
@click.option("--pidns", "pids", flag_value="namespace", help="The original pids, in a pid namespace of their own.")
@click.option("--any-pids", "pids", flag_value="any", help="The original pids, or if one is taken whatever is free.")
@click.option("--files", type=click.Choice(["keep", "rollback", "fail"]),
              help="What is done about open files that have changed since: take them as they are; cut off what they "
                   "have grown by, or put their saved content back, and keep the newer one beside it; or fail.  "
                   "Without it: as the target says, else keep.")
@tcp_option
@force_version_option
@click.option("--stdio", type=click.Choice(STDIO), default="pty", show_default=True,
              help=f"{STDIO_HELP}  crctl attach leads to a fresh one; with inherit, crctl waits and does that "
                   "itself until the first task has ended or Ctrl-] is typed, as ssh would.")
@click.option("--plan", is_flag=True, help="Only say what would be made and everything that stands in the way.")
@click.option("--wait", is_flag=True, help="Come back when the tasks run, or with the reason why they do not.")
@json_option
@socket_option
@click.pass_context
def restart(context: click.Context, image: str, *, pids: str | None, files: str | None, tcp: str, force_version: bool,
            stdio: str, plan: bool, wait: bool, as_json: bool) -> None:
    """Queue the restart of IMAGE, and print the number of the request.

    The request is on disk when its number is printed: it will be carried out exactly once, or fail.  With --plan
    nothing is queued, and the exit status is what the restart would fail with.

    Exit status: 0 done, 1 failed, 2 usage, 10 daemon unavailable, 11 no such image, 12 denied, 13 this host cannot
    restart it, 14 conflicting (a pid is in use, a file has changed).
    """
    sits_down = stdio == "inherit" and not plan
    if sits_down:
        need_terminal()
    with connect() as daemon:
        options = {"reference": image, "pids": pids or "original", "files": files, "tcp": tcp,
                   "stdio": "pty" if stdio == "inherit" else stdio, "force_version": force_version or None}
        if plan:
            context.exit(print_plan(daemon.call("PlanRestart", **options), as_json=as_json))
        request = daemon.call("Restart", **options)["request"]
        if not as_json:
            click.echo(request["number"])
        if wait or sits_down:
            request = _follow(daemon, request)
    if as_json:
        print_json(request)
    elif wait:
        click.echo(f"pid {request['root_pid']}")
    if sits_down:
        _sit_down(request["number"])


def _sit_down(number: int) -> None:
    """Be at the terminal of a restart, if its image had one."""
    try:
        attach_by_daemon(DETACH_KEY, request=number)
    except TerminalNotHeld as error:
        click.echo(f"restarted; {error.message}", err=True)


def _follow(daemon: Client, request: dict[str, Any]) -> dict[str, Any]:
    """Show the states of a request until it has ended.

    Raises:
        CrdError: what it failed for.
    """
    with Progress() as progress:
        for reply in daemon.stream("GetRequest", number=request["number"], wait=True):
            request = reply["request"]
            progress.show(f"request {request['number']}: {request['state']}")
    if request["state"] == "failed":
        raise CrdError.from_json({"error": request["error"], "message": request.get("message") or "",
                                  "hint": request.get("hint") or "", "request": request["number"]})
    if request["state"] != "done":
        raise CrdError(f"request {request['number']} was {request['state']}", request=request["number"])
    return request
