"""What differs between two images, for people."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from crd.console import units
from crd.console.table import print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PAGE_BYTES = 4096
"""Of what the daemon counts in pages."""
_ALWAYS = ("image", "taken", "threads", "memory", "size")


def print_difference(reply: Mapping[str, Any]) -> None:
    """Print the reply of Diff: both images, totals, and what has changed."""
    before, after, total = reply["before"], reply["after"], reply["total"]
    rows = list(zip(_facts(before), _facts(after), strict=True))
    print_table(("", "before", "after"), [(name, was, now) for (name, was), (_, now) in rows
                                          if name in _ALWAYS or was != now])
    click.echo(f"\n{_later(before, after)}; {_pages_text(total)}")
    if not any(total[name] for name in ("tasks", "mappings", "files")):
        click.echo("Tasks, mappings and open files are the same.")
    _section("Tasks", total["tasks"], reply["tasks"], ("pid", "name", "change", "threads"), _task_row)
    _section("Mappings", total["mappings"], reply["memory"],
             ("pid", "mapping", "flags", "change", "changed", "added", "removed", "path"), _memory_row)
    _section("Open files", total["files"], reply["files"], ("pid", "fd", "change", "position", "path"), _file_row)


def _facts(image: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    header = image["header"]
    yield "image", image["crid"]
    yield "taken", units.time(image["taken_at"])
    yield "target", image.get("target")
    yield "process", f"{image['pid']} ({image['comm']})"
    yield "user", image["uid"]
    yield "engine", image["engine"]
    yield from ((name, header[name]) for name in ("kernel", "release", "version", "machine"))
    yield "tasks", image["tasks"]
    yield "threads", image["threads"]
    yield "memory", units.size(image["memory_bytes"])
    yield "size", units.size(image["image_bytes"])


def _later(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    seconds = (datetime.fromisoformat(after["taken_at"]) - datetime.fromisoformat(before["taken_at"])).total_seconds()
    if not seconds:
        return "Taken at the same time"
    return f"Taken {units.duration(abs(seconds))} {'later' if seconds > 0 else 'earlier'}"


def _pages_text(total: Mapping[str, int]) -> str:
    parts = [f"{total[f'{name}_pages']} pages {name} ({units.size(total[f'{name}_pages'] * PAGE_BYTES)})"
             for name in ("changed", "added", "removed")]
    return f"{', '.join(parts)}, {total['equal_pages']} equal"


def _section(what: str, total: int, changes: Sequence[Mapping[str, Any]], columns: Sequence[str],
             row: Callable[[Mapping[str, Any]], Sequence[object]]) -> None:
    if not total:
        return
    shown = f", these are the first {len(changes)}" if len(changes) < total else ""
    click.echo(f"\n{what} that differ: {total}{shown}\n")
    print_table(columns, map(row, changes))


def _task_row(change: Mapping[str, Any]) -> tuple[object, ...]:
    was, now, word = _states(change)
    if word:
        return change["pid"], now["comm"], word, now["threads"]
    return (change["pid"], now["comm"], f"was {was['comm']}" if was["comm"] != now["comm"] else None,
            f"{was['threads']} -> {now['threads']} ({change['threads_gone']} gone, {change['threads_new']} new)")


def _memory_row(change: Mapping[str, Any]) -> tuple[object, ...]:
    was, now, word = _states(change)
    if any(was[name] != now[name] for name in ("flags", "path")):
        word = f"was {was['flags']} {was['path']}".rstrip()
    elif _range(was) != _range(now):
        word = f"was {_range(was)}"
    return (change["pid"], _range(now), now["flags"], word,
            *(change[f"{name}_pages"] or None for name in ("changed", "added", "removed")), now["path"])


def _range(area: Mapping[str, Any]) -> str:
    return f"{area['start']:x}-{area['end']:x}"


def _file_row(change: Mapping[str, Any]) -> tuple[object, ...]:
    was, now, word = _states(change)
    position = now.get("position")
    if not word:
        position = " -> ".join("-" if at is None else str(at) for at in (was.get("position"), position))
        word = f"was {was['path']}" if was["path"] != now["path"] else None
        if was.get("flags") != now.get("flags"):
            word = f"{word or ''} flags were {was.get('flags') or 0:#o}".lstrip()
    return change["pid"], change["fd"], word, position, now["path"]


def _states(change: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any], str | None]:
    """Return what was and what is, the same twice if there is but one, and then a word that says which."""
    was, now = change.get("before"), change.get("after")
    there = now or was or {}
    return was or there, now or there, None if was and now else "gone" if was else "new"
