"""``crctl target``: add, remove, hold, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crd.cli.daemon import connect, socket_option
from crd.console.program import json_option, print_json
from crd.ids import TargetName, parse_target_name


@click.group()
def target() -> None:
    """Add, remove, hold or resume a target.

    Exit status: 0 done, 2 usage, 10 daemon unavailable, 11 no such target, 12 denied, 14 the name is taken.
    """


def _name(_context: click.Context, _parameter: click.Parameter, text: str) -> TargetName:
    return parse_target_name(text)


_name_argument = click.argument("name", callback=_name)


@target.command()
@_name_argument
@click.option("--pid", type=click.IntRange(min=1), help="A process.")
@click.option("--pidfile", type=click.Path(path_type=Path), help="The process that this file names each time.")
@click.option("--comm", metavar="RE", help="The process with a name that this regular expression fits.")
@click.option("--unit", metavar="UNIT", help="The process that this systemd unit runs, with those it has started.")
@click.option("--cgroup", metavar="PATH", help="The same of a control group: /system.slice/web.service.")
@click.option("--every", metavar="DURATION", help="30s, 5min, 1h ...")
@click.option("--on-calendar", metavar="EXPR", help="As systemd.time(7) has it: *-*-* 02:00, Mon..Fri 10:00 ...")
@click.option("--cron", metavar="EXPR", help="As crontab(5) has it.")
@click.option("--jitter", metavar="DURATION", help="Spread over this time, differently for each target.")
@click.option("--keep", metavar="RULES", help='Which images stay: "last=24 within=2d hourly=24 daily=7 weekly=4 '
              'monthly=12 yearly=3"; empty: all.  Without it the rules of the settings count.')
@click.option("--save-files", metavar="SIZE", help="Save files that it can write to, up to this size each "
              "(16MiB), with each image.")
@click.option("--files", type=click.Choice(["keep", "rollback", "fail"]), help="What a restart does about files that "
              "have changed, if its request does not say.")
@click.option("--at-shutdown", is_flag=True, default=None, help="Save and end it when the host goes down.")
@click.option("--at-boot", type=click.Choice(["original", "any"]), help="Restart it then when the host is up again, "
              "under its pids, or (any) under others if one of them is taken.")
@json_option
@socket_option
def add(name: TargetName, *, pidfile: Path | None, as_json: bool, **given: Any) -> None:
    """Checkpoint something regularly: exactly one process, exactly one schedule.

    Exit status: 0 done, 2 usage, 10 daemon unavailable, 12 denied, 14 the name is taken.
    """
    wanted = {"name": name, "held": False, "pidfile": str(pidfile.absolute()) if pidfile else None, **given}
    _exactly_one(wanted, "pid", "pidfile", "comm", "unit", "cgroup")
    _exactly_one(wanted, "every", "on_calendar", "cron")
    with connect() as daemon:
        added = daemon.call("AddTarget", target=wanted)["target"]
    if as_json:
        print_json(added)


@target.command()
@_name_argument
@json_option
@socket_option
def remove(name: TargetName, *, as_json: bool) -> None:
    """Checkpoint a target no more; its images stay.

    Exit status: 0 done, 10 daemon unavailable, 11 no such target, 12 denied.
    """
    _change("RemoveTarget", name, as_json=as_json)


@target.command()
@_name_argument
@json_option
@socket_option
def hold(name: TargetName, *, as_json: bool) -> None:
    """Leave a target alone until it is resumed.

    Exit status: 0 done, 10 daemon unavailable, 11 no such target, 12 denied.
    """
    _change("HoldTarget", name, as_json=as_json)


@target.command()
@_name_argument
@json_option
@socket_option
def resume(name: TargetName, *, as_json: bool) -> None:
    """Checkpoint a target again that was held.

    Exit status: 0 done, 10 daemon unavailable, 11 no such target, 12 denied.
    """
    _change("ResumeTarget", name, as_json=as_json)


def _exactly_one(given: dict[str, Any], *names: str) -> None:
    if sum(given[name] is not None for name in names) != 1:
        options = [f"--{name.replace('_', '-')}" for name in names]
        raise click.UsageError(f"give exactly one of {', '.join(options[:-1])} and {options[-1]}",
                               click.get_current_context())


def _change(method: str, name: TargetName, *, as_json: bool) -> None:
    with connect() as daemon:
        daemon.call(method, name=name)
    if as_json:
        print_json({"name": name})
