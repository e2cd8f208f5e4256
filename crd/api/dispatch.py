"""From a call to its reply: which interface, which method, whether the parameters are right."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from crd.api import interface
from crd.api.audit import GONE, OK, Audit
from crd.api.channel import Channel, PeerLost
from crd.api.protocol import FAILED, INTERFACE, SERVICE, UPGRADED, Call, Reply, ServiceError, encode
from crd.errors import CrdError, unforeseen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crd.api.access import Peer

    More = Callable[[dict[str, Any]], Awaitable[None]]
    """Sends a reply that is not the last."""

    Handler = Callable[[str, dict[str, Any], Peer, More | Channel | None], Awaitable[dict[str, Any]]]
    """Answers a call of ``io.crd``: (method without its interface, parameters, peer, more) -> last reply.

    The parameters have been checked; each one of the interface is there, optional ones as None if they were left out.
    ``more`` is None unless the caller wants several replies, or bytes: then it is a Channel.  Such a call is cancelled
    when the caller hangs up; any other runs to its end.  A CrdError goes to the caller as ``io.crd.Failed``.
    """

logger = logging.getLogger(__name__)


class Dispatch:
    """Answers calls of ``io.crd``, by the handler, and of ``org.varlink.service``."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._audit = Audit()
        self._interfaces = {name: interface.load(name) for name in (SERVICE, INTERFACE)}

    async def answer(self, call: Call, peer: Peer, more: More | Channel | None) -> bytes:
        """Return the last reply to a call, encoded: the result or the error.

        Raises:
            PeerLost: ``more`` found nobody to reply to.
        """
        outcome = GONE
        try:
            reply, outcome = Reply(await self._result(call, peer, more)), OK
        except ServiceError as error:
            reply, outcome = Reply(error.parameters, error=error.name), error.name
        except CrdError as error:
            reply, outcome = failed(error), error.code
        except PeerLost:
            raise
        except Exception:
            logger.exception("%s of uid %d, pid %d", call.method, peer.uid, peer.pid)
            reply, outcome = failed(unforeseen()), CrdError.code
        finally:
            self._audit.record(peer, call, outcome)
        return encode(reply)

    async def _result(self, call: Call, peer: Peer, more: More | Channel | None) -> dict[str, Any]:
        interface_name, _, name = call.method.rpartition(".")
        if not (found := self._interfaces.get(interface_name)):
            raise ServiceError("InterfaceNotFound", interface=interface_name)
        if not (method := found.methods.get(name)):
            raise ServiceError("MethodNotFound", method=call.method)
        if call.upgrade != (call.method in UPGRADED):
            raise ServiceError("MethodNotImplemented", method=call.method)
        parameters = method.parameters.check(call.parameters or {})
        if interface_name == INTERFACE:
            return await self._handler(name, parameters, peer, more)
        return self._info() if name == "GetInfo" else self._description(parameters["interface"])

    def _info(self) -> dict[str, Any]:
        return {"vendor": "crd", "product": "crd", "version": version("crd"), "url": "",
                "interfaces": list(self._interfaces)}

    def _description(self, name: str) -> dict[str, Any]:
        if name not in self._interfaces:
            raise ServiceError("InterfaceNotFound", interface=name)
        return {"description": self._interfaces[name].text}


def failed(error: CrdError) -> Reply:
    """Return the reply to a call that ended so."""
    details = error.to_json()
    code, message, hint = (details.pop(name) for name in ("error", "message", "hint"))
    return Reply({"code": code, "message": message, "hint": hint, "exit_status": error.exit_status,
                  "details": details}, error=FAILED)
