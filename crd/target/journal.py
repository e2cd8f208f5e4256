"""Connections to the journal of systemd (systemd-journald.service(8)): known by the name at their other end."""

from __future__ import annotations

import re
from pathlib import Path

_STDOUT = re.compile(rb"/run/systemd/journal(?:\.([^/]+))?/stdout")


def namespace(name: bytes) -> str | None:
    """Return the namespace of the journal ("": that of the host) whose streams have this name; None: no journal's."""
    found = _STDOUT.fullmatch(name)
    return (found[1] or b"").decode(errors="surrogateescape") if found else None


def directory(space: str) -> Path:
    """Return where the journal of a namespace has its sockets and notes."""
    return Path(f"/run/systemd/journal.{space}" if space else "/run/systemd/journal")
