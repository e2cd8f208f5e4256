"""Logging: to the journal with its priorities, as JSON, or as text.

Every line about an event carries its **event**, a stable slug such as ``checkpoint.ok``, and keys named as here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time

KEYS = ("event", "target", "pid", "crid", "request", "error", "seconds", "uid", "method", "object", "outcome")
"""The keys that may stand in ``extra``."""

_PLAIN = re.compile(r"[\w./:@+,~-]+")
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
"""Names come from everybody; none of them may begin a line of its own, or speak to the terminal."""

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Text(logging.Formatter):
    """``time level message key=value``, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        keys = "".join(f" {key}={_plain(value)}" for key, value in _extra(record).items())
        return f"{self.formatTime(record)} {record.levelname.lower()} {_message(self, record)}{keys}"


class _Journal(logging.Formatter):
    """``<priority>message key=value``, as sd-daemon(3) has it."""

    def format(self, record: logging.LogRecord) -> str:
        keys = "".join(f" {key}={_plain(value)}" for key, value in _extra(record).items())
        priority = _PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in f"{_message(self, record)}{keys}".split("\n"))


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
                           "level": record.levelname.lower(), "logger": record.name,
                           "message": _message(self, record), **_extra(record)}, default=str)


def set_up(level: str, style: str) -> None:
    """Log to stderr.

    Args:
        level: debug, info, warning or error.
        style: journal, json, text, or auto: journal where systemd reads stderr, else text.
    """
    if style == "auto":
        style = "journal" if "JOURNAL_STREAM" in os.environ else "text"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter({"journal": _Journal, "json": _Json, "text": _Text}[style]())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key in KEYS if (value := record.__dict__.get(key)) is not None}


def _plain(value: object) -> str:
    """Return a value as it stands behind its key: in quotes unless it is one word."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text.translate(_CONTROL), ensure_ascii=False)


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.getMessage().translate(_CONTROL)
    return f"{text}\n{formatter.formatException(record.exc_info)}" if record.exc_info else text
