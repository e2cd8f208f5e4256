"""The audit log: who asked for what, and what came of it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from crd.errors import AccessDenied

if TYPE_CHECKING:
    from crd.api.access import Peer
    from crd.api.protocol import Call

logger = logging.getLogger(__name__)

OK = "ok"
GONE = "gone"
READING = frozenset({"io.crd.GetStatus", "io.crd.ListTargets", "io.crd.ListImages", "io.crd.GetImage",
                     "io.crd.ListRequests", "io.crd.GetRequest", "io.crd.Check"})
"""What changes nothing, and is asked all the time: of interest only if it is denied."""
_OBJECTS = ("references", "reference", "name", "target", "pid", "number", "request")
_OBJECT_CHARACTERS = 200
_WINDOW_SECONDS = 10.0
_LINES = 50
_USERS = 1000


class Audit:
    """Writes a line for each call.

    A user who is no administrator gets so many lines in a while, and then one that says how many are missing: else a
    flood of calls would push what others did out of the journal.
    """

    def __init__(self) -> None:
        self._windows: dict[int, tuple[float, int]] = {}

    def record(self, peer: Peer, call: Call, outcome: str) -> None:
        """Log a call.

        Args:
            peer: who asked.
            call: for what.
            outcome: ``ok``, the code of the error, or ``gone``: the caller did not wait for the reply.
        """
        denied = outcome == AccessDenied.code
        if outcome == OK and call.method in READING:
            level = logging.DEBUG
        elif peer.is_admin or self._has_room(peer):
            level = logging.WARNING if denied else logging.INFO
        else:
            return
        logger.log(level, "denied" if denied else "asked", extra={
            "event": "api.denied" if denied else "api.call", "uid": peer.uid, "pid": peer.pid,
            "method": call.method[:_OBJECT_CHARACTERS], "object": _object(call.parameters or {}), "outcome": outcome})

    def _has_room(self, peer: Peer) -> bool:
        now = time.monotonic()
        since, lines = self._windows.get(peer.uid, (now, 0))
        if now - since > _WINDOW_SECONDS:
            if lines > _LINES:
                logger.warning("%d more calls are not listed", lines - _LINES,
                               extra={"event": "api.flood", "uid": peer.uid})
            since, lines = now, 0
        if len(self._windows) > _USERS:
            self._windows.clear()
        self._windows[peer.uid] = since, lines + 1
        return lines < _LINES


def _object(parameters: dict[str, Any]) -> str | None:
    """Return what a call is about, as the caller named it, and no longer than a line should be."""
    for key in _OBJECTS:
        named = parameters.get(key)
        if isinstance(named, dict):  # a target that is to be added
            named = named.get("name")
        if isinstance(named, list):
            named = " ".join(map(str, named[:_OBJECT_CHARACTERS]))
        if named is not None:
            return str(named)[:_OBJECT_CHARACTERS]
    return None
