"""Manual pages, written from what the programs and the settings file say about themselves.

``python -m crd.console.manual crd.cli.main:crctl 1`` prints the page of a program in section 1 of the manual,
``python -m crd.console.manual config/crd.toml 5`` that of the settings file.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGES = (("crd", 8), ("crctl", 1), ("crd.toml", 5))
_KEY = re.compile(r"#([a-z_0-9]+) = (.*?)(?:\s+# (.*))?")
_MORE = re.compile(r"\s+# (.*)")
_TABLE = re.compile(r"#?\[([a-z0-9_.]+)\]")


def program_page(program: click.Command, section: int) -> Iterator[str]:
    """Return the lines of the page of a program and all its commands, in the language of man(7)."""
    name = str(program.name)
    context = click.Context(program, info_name=name)
    paragraphs = _paragraphs(program.help or "")
    yield from _head(name, section, paragraphs[0])
    yield ".SH SYNOPSIS"
    yield f".B {name}"
    yield _text(" ".join(program.collect_usage_pieces(context)))
    yield ".SH DESCRIPTION"
    yield from _paragraph_lines(paragraphs)
    yield ".SH OPTIONS"
    yield from _options(context)
    yield ".SH COMMANDS"
    yield from _commands(context)
    yield from _foot(name)


def settings_page(example: str) -> Iterator[str]:
    """Return the lines of the page of the settings file, from the one that shows every key with its default."""
    yield from _head("crd.toml", 5, "Settings of the checkpoint daemon.")
    yield ".SH DESCRIPTION"
    lines = iter(example.splitlines())
    for line in lines:
        if not line:
            break
        yield _text(line.removeprefix("# "))
    yield ".SH SECTIONS"
    for line in lines:
        if table := _TABLE.fullmatch(line):
            yield f".SS {_text(f'[{table[1]}]')}"
        elif key := _KEY.fullmatch(line):
            yield from (".TP", f"\\fB{_text(key[1])}\\fR = {_text(key[2])}", _text(key[3] or ""))
        elif more := _MORE.fullmatch(line):
            yield _text(more[1])
        elif line:
            yield _text(line.removeprefix("# "))
    yield from _foot("crd.toml")


def _commands(context: click.Context) -> Iterator[str]:
    """Tell of each command, and of the commands of each that is a group."""
    group = context.command
    if not isinstance(group, click.Group):
        return
    for name in group.list_commands(context):
        if (command := group.get_command(context, name)) and not command.hidden:
            own = click.Context(command, info_name=name, parent=context)
            usage = " ".join(command.collect_usage_pieces(own))
            yield f".SS {_text(f'{own.command_path} {usage}')}"
            yield from _paragraph_lines(_paragraphs(command.help or ""))
            yield from _options(own)
            yield from _commands(own)


def _options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record and record[1] and (not context.parent or parameter.name != "help"):
            yield from (".TP", f"\\fB{_text(record[0])}\\fR", _text(record[1]))


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _paragraph_lines(paragraphs: list[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        yield from (".PP", _text(paragraph))


def _head(name: str, section: int, summary: str) -> Iterator[str]:
    yield f'.TH "{name.upper()}" "{section}" "" "crd {version("crd")}" "crd"'
    yield from (".SH NAME", f"{_text(name)} \\- {_text(summary[:1].lower() + summary[1:].rstrip('.'))}")


def _foot(name: str) -> Iterator[str]:
    yield ".SH SEE ALSO"
    yield ", ".join(f"\\fB{other}\\fR({section})" for other, section in _PAGES if other != name)


def _text(text: str) -> str:
    """Escape what would be a request, or be replaced."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main() -> None:
    """Print a page."""
    what, section = sys.argv[1:]
    if what.endswith(".toml"):
        lines = settings_page(Path(what).read_text(encoding="utf-8"))
    else:
        module, _, name = what.partition(":")
        lines = program_page(getattr(import_module(module), name), int(section))
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
