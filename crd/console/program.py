"""From the command line to the exit status."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from crd.errors import EXIT_FAILED, EXIT_USAGE, CrdError
from crd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells say it."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")


class Lazy(NamedTuple):
    """A command that is imported when it is wanted: ``package.module:name``, and what it does, for the list of them."""

    where: str
    help: str


class Program(click.Group):
    """A group of commands that imports only the one which is run."""

    def __init__(self, *args: Any, commands: Mapping[str, Lazy], **settings: Any) -> None:
        """Make a group; ``commands`` stay in this order."""
        super().__init__(*args, **settings)
        self._lazy = dict(commands)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's interface
        """Return the names of the commands."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if not (lazy := self._lazy.get(cmd_name)):
            return None
        module, _, name = lazy.where.partition(":")
        command = getattr(import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{lazy.where} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in self._lazy.items()])


def run(command: click.Command, words: Sequence[str] | None = None) -> NoReturn:
    """Run a program and exit."""
    sys.exit(status_of(command, sys.argv[1:] if words is None else words))


def status_of(command: click.Command, words: Sequence[str]) -> int:
    """Run a program and return its exit status; errors have been told on standard error."""
    as_json = "--json" in words
    try:
        status = command.main(list(words), prog_name=command.name, standalone_mode=False)
        sys.stdout.flush()
    except CrdError as error:
        _tell(command.name, error.to_json(), as_json=as_json)
        return error.exit_status
    except click.ClickException as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(error.format_message(), err=True)
        else:
            _tell(command.name, _usage(error), as_json=as_json)
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return EXIT_FAILED
    except OSError as error:
        _drop_output()
        _tell(command.name, CrdError(f"{error.filename or 'standard output'}: {error.strerror}").to_json(),
              as_json=as_json)
        return EXIT_FAILED
    return status if isinstance(status, int) else 0


def _usage(error: click.ClickException) -> dict[str, Any]:
    context = getattr(error, "ctx", None)
    hint = f"Try {context.command_path} --help." if context else ""
    return {"error": "usage", "message": error.format_message(), "hint": hint}


def _tell(program: str | None, error: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(error, default=str), err=True)
        return
    for line in f"{program}: {error['message']}\n{error['hint']}".splitlines():
        click.echo(printable(line), err=True)


def _drop_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not stumble over it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def print_json(value: Any) -> None:
    """Print one JSON value on standard output."""
    click.echo(json.dumps(value, indent=2))


def print_json_list(values: Iterable[Any]) -> None:
    """Print one JSON array on standard output, each value as soon as it is there."""
    before = "[\n  "
    for value in values:
        click.echo(before + json.dumps(value, indent=2).replace("\n", "\n  "), nl=False)
        before = ",\n  "
    click.echo("[]" if before.startswith("[") else "\n]")
