"""The worker: a disposable process in which an engine runs for the daemon; ``crd.engine.nursery`` makes them.

It serves one call.  Half of what a small image costs is that a new worker has to copy the memory of its nursery that it
writes to, so one that has taken an image without any error, of tasks that run on, takes another if nothing of that is
left in it (``crd.engine.leftovers``); some in all, since whatever nobody has thought of is to end with it.

That goes over a SOCK_SEQPACKET socket, one JSON object a message, descriptors beside it (SCM_RIGHTS)::

    -> {"call": "checkpoint", "pid": 42, "options": {...}, "notes": {...}} + fd, and those of the notes
    <- {"event": "written", "result": {...}} + those of the notes      all is in the pipe, and has a crid
    -> {"commit": true}                             it is durable: kill or stop the target if that was asked for
    <- {"result": {...}, "again": true}            another may be asked for, if it says so

    -> {"call": "restart", "options": {...}} + fd
    <- {"event": "ready", "result": {...}} + listeners      all is made, nothing runs yet
    -> {"commit": true}                             it is noted: let the tasks go
    <- {"result": {...}}

    -> {"call": "check", "pid": 42}                 what stands in the way of a checkpoint
    <- {"result": {...}}

    -> {"call": "features"}                         what there is, tried out
    <- {"result": [...]}

    -> {"call": "serving", "options": {...}}        which engine would take images; what it left frozen is thawed
    <- {"result": "userspace"}

    -> {"call": "fetch", "pid": 42, "fd": 3}        of a listener that another process holds
    <- {"event": "fetched"} + listener, -> {"commit": true}
    <- {"result": null}

    -> {"call": "serve", "notification": {...}, "options": {...}} + the listener it came from
    <- {"event": "ready", ...} + listeners, -> {"commit": true}         of a restart, as above
    <- {"result": {...}}                            the call has returned

    -> {"call": "attach", "pid": 42, "peer": 43, "fd": 3}       the terminal of a process, for a socket of the peer's
    <- {"event": "found", "result": {...}}, -> {"commit": true}
    <- {"result": null}                             it has been given

    -> {"call": "plan", "options": {...}} + fd
    <- {"result": {...}}                            what a restart would make

    -> {"call": "rehearse"} + fd
    <- {"result": {...}}                            what a copy did in a sandbox, of which nothing is left

or, at any point, ``<- {"error": CrdError.to_json()}``.  If the daemon dies or sends anything else instead of the
commit, the worker takes everything back: a target runs on, half-made tasks die.
"""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from crd.engine import api, served, terminals
from crd.engine.crid import CridCounter
from crd.engine.kernel import freezer
from crd.engine.leftovers import Leftovers
from crd.engine.rehearsal import rehearse
from crd.engine.userspace.features import features
from crd.engine.userspace.notes import WriteNotes
from crd.errors import CrdError, EngineError
from crd.native.notification import Notification
from crd.native.syscall import kcmp
from crd.target import preflight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.engine.channel import Channel

_IMAGES_MAX = 16
"""That a worker takes, if all goes well: then what it costs to make it is little beside them."""


def _checkpoint(message: dict[str, Any], fds: Sequence[int], channel: Channel) -> Any:
    fd, *held = fds
    options = msgspec.convert(message["options"], api.CheckpointOptions)
    notes = _notes(message["notes"], held)

    def commit(result: api.CheckpointResult) -> None:
        os.close(fd)
        kept = dict(notes.held) if notes else {}
        channel.await_commit("written", replace(result, noted=tuple(kept)), list(kept.values()))

    result = api.checkpoint(message["pid"], fd, options=options, crids=CridCounter(Path(message["crid_file"])),
                            notes=notes, commit=commit)
    if notes:
        notes.close()
    return result


def _notes(message: dict[str, Any] | None, held: Sequence[int]) -> WriteNotes | None:
    if message is None:
        return None
    keys = [(pid, start_time) for pid, start_time in message["held"]]
    return WriteNotes(dict(zip(keys, held, strict=True)), message["since"])


def _restart(message: dict[str, Any], fds: Sequence[int], channel: Channel) -> Any:
    [fd] = fds
    options = msgspec.convert(message["options"], api.RestartOptions)
    return api.restart(fd, options=options, confirm=partial(_confirm, channel))


def _confirm(channel: Channel, ready: api.RestartResult) -> None:
    channel.await_commit("ready", replace(ready, listeners=()), ready.listeners)


def _fetch(message: dict[str, Any], _fds: Sequence[int], channel: Channel) -> Any:
    channel.await_commit("fetched", None, [served.fetched_listener(message["pid"], message["fd"])])


def _attach(message: dict[str, Any], _fds: Sequence[int], channel: Channel) -> Any:
    with (terminals.held_terminal(message["pid"]) as terminal,
          terminals.connection_of(message["peer"], message["fd"]) as connection):
        channel.await_commit("found", {"name": terminal.name, "root_pid": terminal.root_pid})
        terminal.give_to(connection)


def _serve(message: dict[str, Any], fds: Sequence[int], channel: Channel) -> Any:
    [listener] = fds
    service = served.Service(
        crids=CridCounter(Path(message["crid_file"])),
        options=msgspec.convert(message["options"], api.CheckpointOptions), confirm=partial(_confirm, channel))
    return served.serve(listener, msgspec.convert(message["notification"], Notification), service)


def _check(message: dict[str, Any], _fds: Sequence[int], _channel: Channel) -> Any:
    return preflight.check(message["pid"], kcmp=kcmp)


def _features(_message: dict[str, Any], _fds: Sequence[int], _channel: Channel) -> Any:
    return features()


def _serving(message: dict[str, Any], _fds: Sequence[int], _channel: Channel) -> Any:
    engine = api.serving(msgspec.convert(message["options"], api.CheckpointOptions))
    if engine == api.KERNEL:
        freezer.sweep(freezer.mounted())
    return engine


def _plan(message: dict[str, Any], fds: Sequence[int], _channel: Channel) -> Any:
    [fd] = fds
    return api.plan(fd, options=msgspec.convert(message["options"], api.RestartOptions))


def _rehearse(_message: dict[str, Any], fds: Sequence[int], _channel: Channel) -> Any:
    [fd] = fds
    return rehearse(fd)


CALLS = {"checkpoint": _checkpoint, "restart": _restart, "plan": _plan, "rehearse": _rehearse, "fetch": _fetch,
         "attach": _attach, "serve": _serve, "check": _check, "features": _features, "serving": _serving}


def serve(channel: Channel, calls: dict[str, Any] = CALLS) -> None:
    """Answer one call; after an image that left nothing behind here, another."""
    leftovers = Leftovers()
    for left in range(_IMAGES_MAX - 1, -1, -1):
        try:
            message, fds = channel.receive()
        except (EOFError, OSError):
            return  # the daemon has no use for us
        answer = _answer(message, fds, channel, calls)
        is_ready = bool(left) and _is_repeatable(message, answer) and not leftovers.found()
        with suppress(OSError):  # the daemon is gone; what had to be undone is undone
            channel.send({**answer, "again": True} if is_ready else answer)
        if not is_ready:
            return


def _answer(message: dict[str, Any], fds: Sequence[int], channel: Channel, calls: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": calls[message["call"]](message, fds, channel)}
    except CrdError as error:
        return {"error": error.to_json()}
    except Exception as error:  # noqa: BLE001  the outermost loop
        traceback.print_exc()
        return {"error": EngineError(f"the engine failed: {error!r}").to_json()}


def _is_repeatable(message: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Whether all went well, and was the kind of call that is all undone when it is over."""
    result = answer.get("result")
    return (isinstance(result, api.CheckpointResult) and result.engine == api.USERSPACE
            and message["options"]["after"] == api.After.RUN)
