"""Reading the settings file; every error names file, line and key, and says what would be right."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError as EnvironmentError_

from crd.errors import SettingsError
from crd.settings.models import Settings, TargetSettings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

DEFAULT_PATH = Path("/etc/crd/crd.toml")
_PASSWORD = re.compile(r"(?<=://)([^/@:]*:)[^/@]*(?=@)")
"""In an address; whoever reads the log is not to read it."""
_RELOADED = {"workers", "freeze_timeout", "checkpoint_timeout", "restart_timeout", "method"}
"""Keys of the engine that count at once."""


def load(path: Path | None = None) -> Settings:
    """Read the settings.

    Args:
        path: of the file; None: /etc/crd/crd.toml if it is there, else defaults and environment alone.

    Raises:
        SettingsError: they are wrong.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return _validated({}, "", "")
        path = DEFAULT_PATH
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{path}: {reason}", path=str(path),
                            hint=f"Name a settings file, or leave it out: {DEFAULT_PATH} counts then.") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = "Keys go below the header that is there: each is written once." if "twice" in str(error) else (
            "See https://toml.io for the syntax.")
        raise SettingsError(f"{path}: {error}", path=str(path), hint=hint) from error
    return _validated(data, text, str(path))


def check_target(name: str, definition: dict[str, Any]) -> TargetSettings:
    """Check a target that was not in the settings file.

    Raises:
        SettingsError: it is wrong.
    """
    try:
        return TargetSettings(**definition)
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join([f"target {name}", *map(str, first["loc"][:1])])
        raise SettingsError(f"{where}: {_what(first, TargetSettings)}", hint="crctl target add --help shows examples."
                            ) from error


def changed_keys(old: Settings, new: Settings) -> list[str]:
    """Return the keys that differ of those that count when the daemon starts, as section.key."""
    before, after = (settings.model_dump(exclude={"targets": True, "retention": True, "engine": _RELOADED})
                     for settings in (old, new))
    return [f"{section}.{key}" for section, keys in after.items() for key in keys
            if keys[key] != before[section][key]]


def _validated(data: dict[str, Any], text: str, path: str) -> Settings:
    try:
        return Settings(**data)
    except ValidationError as error:
        lines = [_message(detail, text, path) for detail in error.errors()]
        raise SettingsError("\n".join(lines), path=path,
                            hint="man crd.toml, and config/crd.toml of the sources, show every key.") from error
    except EnvironmentError_ as error:
        raise SettingsError(str(error), hint="Complex values in the environment are written as JSON.") from error


def _message(detail: ErrorDetails, text: str, path: str) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    line = _line(text, location)
    where = f"{path}:{line}: {key}" if line else f"CRD_{'__'.join(location).upper()}" if location else path
    return f"{where}: {_what(detail, _section(location))}"


def _section(location: list[str]) -> type[BaseModel]:
    if location[:1] == ["targets"]:
        return TargetSettings
    field = Settings.model_fields.get(location[0]) if len(location) > 1 else None
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else Settings


def _what(detail: ErrorDetails, section: type[BaseModel]) -> str:
    if detail["type"] == "extra_forbidden":
        wrong = str(detail["loc"][-1])
        close = difflib.get_close_matches(wrong, list(section.model_fields), 1)
        known = f"did you mean {close[0]}?" if close else f"known are {', '.join(section.model_fields)}"
        return f"unknown key; {known}"
    found = _PASSWORD.sub(r"\1***", repr(detail["input"]))
    return f"{detail['msg'].removeprefix('Value error, ')} (found {found})"


def _line(text: str, location: list[str]) -> int:
    """Find the line of a key in TOML text, or of its table; 0 if it does not stand there."""
    table: list[str] = []
    found = 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
            if table == location[:len(table)] and len(table) <= len(location):
                found = number
        elif key := re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line):
            whole = table + [part.strip("\"'") for part in key[1].split(".")]
            if whole == location[:len(whole)]:
                return number
    return found
