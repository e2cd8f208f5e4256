"""Logging: to the journal with its priorities and fields, as JSON, or as text.

Every line about an event carries its **event**, a stable slug such as ``checkpoint.ok``, and keys named as here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import time
from typing import TextIO

KEYS = ("event", "target", "pid", "crid", "request", "error", "seconds", "uid", "method", "object", "outcome")
"""The keys that may stand in ``extra``."""

_JOURNAL = "/run/systemd/journal/socket"
_PLAIN = re.compile(r"[\w./:@+,~-]+")
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
"""Names come from everybody; none of them may begin a line of its own, or speak to the terminal."""
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Text(logging.Formatter):
    """``time level message key=value``, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record)} {record.levelname.lower()} {_with_keys(self, record)}"


class _Prefixed(logging.Formatter):
    """``<priority>message key=value``, as sd-daemon(3) has it."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(f"<{_priority(record)}>{line}" for line in _with_keys(self, record).split("\n"))


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
                           "level": record.levelname.lower(), "logger": record.name,
                           "message": _message(self, record), **_extra(record)}, default=str)


class _Journal(logging.StreamHandler[TextIO]):
    """To the journal, with its fields: CRD_EVENT, CRD_TARGET and so on (systemd.journal-fields(7)).

    What it does not take goes to standard error.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record as one datagram."""
        fields = {"MESSAGE": _with_keys(self.formatter, record), "PRIORITY": _priority(record),
                  "SYSLOG_IDENTIFIER": "crd", "CODE_FILE": record.pathname, "CODE_LINE": record.lineno,
                  **{f"CRD_{key.upper()}": value for key, value in _extra(record).items()}}
        try:
            self._socket.sendto(b"".join(_journal_field(name, str(value)) for name, value in fields.items()), _JOURNAL)
        except OSError:
            super().emit(record)


def _journal_field(name: str, value: str) -> bytes:
    """Return a field with its length, so that it may hold anything (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    data = value.encode(errors="replace")
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)


def set_up(level: str, style: str) -> None:
    """Log to stderr.

    Args:
        level: debug, info, warning or error.
        style: journal, json, text, or auto: journal where stderr leads there, else text.
    """
    if style == "auto":
        style = "journal" if _leads_to_journal(sys.stderr) else "text"
    handler = _Journal() if style == "journal" else logging.StreamHandler(sys.stderr)
    handler.setFormatter({"journal": _Prefixed, "json": _Json, "text": _Text}[style]())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _leads_to_journal(stream: TextIO) -> bool:
    """Whether systemd has connected a stream to the journal (JOURNAL_STREAM in systemd.exec(5))."""
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key in KEYS if (value := record.__dict__.get(key)) is not None}


def _with_keys(formatter: logging.Formatter | None, record: logging.LogRecord) -> str:
    keys = "".join(f" {key}={_plain(value)}" for key, value in _extra(record).items())
    return f"{_message(formatter or logging.Formatter(), record)}{keys}"


def _priority(record: logging.LogRecord) -> int:
    return _PRIORITIES.get(record.levelno, 6)


def _plain(value: object) -> str:
    """Return a value as it stands behind its key: in quotes unless it is one word."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text.translate(_CONTROL), ensure_ascii=False)


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.getMessage().translate(_CONTROL)
    return f"{text}\n{formatter.formatException(record.exc_info)}" if record.exc_info else text
