"""The Varlink server: connections, calls, replies, and what each may cost the daemon.

A message that is malformed or too long, a flood of calls or a reader that does not read ends the connection it came by,
and nothing else.  A connection too many is told so, in the place of the reply to its first call.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from crd.api.access import GROUP, Admission, Limits, group_id, peer_of
from crd.api.connection import Connection
from crd.api.dispatch import Dispatch, failed
from crd.api.listener import listen
from crd.api.protocol import encode
from crd.errors import Busy

if TYPE_CHECKING:
    from crd.api.access import Peer
    from crd.api.dispatch import Handler

logger = logging.getLogger(__name__)

_NAP_SECONDS = 0.5
"""Before accept(2) is tried again when there are no descriptors or no memory left."""


class Server:
    """Serves ``io.crd`` on a unix socket."""

    def __init__(self, where: Path | int, handler: Handler, *, public: bool = False, group: str = GROUP,
                 limits: Limits | None = None) -> None:
        """Make a server; nothing happens before ``start``.

        Args:
            where: path of the socket file, or a descriptor that listens already (socket activation).
            handler: answers the calls (``crd.api.dispatch.Handler``).
            public: whether everybody may connect, not only root and the group.
            group: whose members may do everything.
            limits: what a peer may take.
        """
        self._where = where
        self._public = public
        self._group = group
        self._limits = limits or Limits()
        self._dispatch = Dispatch(handler)
        self._admission = Admission(self._limits)
        self._connections: set[asyncio.Task[None]] = set()
        self._admin_gid: int | None = None
        self._listener: socket.socket | None = None
        self._nap: asyncio.TimerHandle | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            StateInUse: another daemon listens there.
            SettingsError: the socket cannot be made.
        """
        self._admin_gid = group_id(self._group)
        if isinstance(self._where, Path):
            if self._admin_gid is None and not self._public:
                logger.warning("there is no group %s: only root may connect to %s", self._group, self._where)
            self._listener = listen(self._where, public=self._public, gid=self._admin_gid)
            self._inode = self._where.lstat().st_ino
        else:
            self._listener = socket.socket(fileno=self._where)
            self._listener.setblocking(False)
        self._watch()

    async def close(self) -> None:
        """Stop listening, end every connection, remove the socket file."""
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener)
        if self._nap:
            self._nap.cancel()
        ending = list(self._connections)
        for connection in ending:
            connection.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        if isinstance(self._where, Path):
            with suppress(FileNotFoundError):
                if self._where.lstat().st_ino == self._inode:
                    self._where.unlink()
        self._listener.close()
        self._listener = None

    def _watch(self) -> None:
        if self._listener:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connected, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.warning("no connection can be accepted: %s", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            self._nap = loop.call_later(_NAP_SECONDS, self._watch)
            return
        connected.setblocking(False)
        self._admit(connected)

    def _admit(self, connected: socket.socket) -> None:
        try:
            peer = peer_of(connected, self._admin_gid)
        except OSError:
            connected.close()
            return
        try:
            self._admission.admit(peer)
        except Busy as error:
            logger.debug("uid %d, pid %d: %s", peer.uid, peer.pid, error.message)
            with connected, suppress(OSError):  # there is room for so little in every new socket
                connected.send(encode(failed(error)))
            return

        def gone(task: asyncio.Task[None]) -> None:
            self._connections.discard(task)
            self._admission.leave(peer)
            connected.close()

        task = asyncio.create_task(self._serve(connected, peer), name=f"api uid {peer.uid} pid {peer.pid}")
        self._connections.add(task)
        task.add_done_callback(gone)

    async def _serve(self, connected: socket.socket, peer: Peer) -> None:
        try:
            connection = await Connection.open(connected, peer, self._limits)
            try:
                await connection.serve(self._dispatch)
            finally:
                await connection.abort()
        except Exception:
            logger.exception("the connection of uid %d, pid %d", peer.uid, peer.pid)
