"""Whatever arrives on the control socket, it is a call, or it is refused."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crd.api import interface
from crd.api.access import Limits, Peer
from crd.api.channel import Channel
from crd.api.connection import Connection
from crd.api.dispatch import Dispatch
from crd.api.protocol import INTERFACE, MessageBuffer, ServiceError, decode_call, decode_reply
from crd.errors import BadRequest

OURS = interface.load(INTERFACE)
PEER = Peer(0, 0, 1, frozenset({0}), is_admin=True)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8)
words = st.sampled_from(["reference", "target", "pid", "name", "number", "held", "every", "limit", "wait", "after"])
parameters = st.dictionaries(words | st.text(max_size=5), values | st.dictionaries(words, values), max_size=5)
methods = st.sampled_from([f"{INTERFACE}.{name}" for name in OURS.methods]) | st.text(max_size=20)
calls = st.fixed_dictionaries({"method": methods}, optional={
    "parameters": parameters, "more": st.booleans(), "oneway": st.booleans(), "upgrade": st.booleans()})
streams = st.lists(st.binary(max_size=60) | calls.map(lambda call: json.dumps(call).encode() + b"\0"), max_size=8)


@given(st.binary() | st.text().map(str.encode) | calls.map(lambda call: json.dumps(call).encode()))
def test_messages_are_calls_or_refused(message: bytes) -> None:
    for decode in (decode_call, decode_reply):
        with suppress(BadRequest):
            decode(message)


@given(st.sampled_from(sorted(OURS.methods)), parameters)
def test_parameters_are_right_or_refused(method: str, given_parameters: dict[str, Any]) -> None:
    takes = OURS.methods[method].parameters
    try:
        checked = takes.check(given_parameters)
    except ServiceError:
        return
    assert checked.keys() == takes.fields.keys()
    assert takes.check(checked) == checked


@given(st.binary(), st.lists(st.integers(0, 40), max_size=6), st.integers(1, 50))
def test_pieces_make_the_same_messages_as_the_whole(stream: bytes, cuts: list[int], bytes_max: int) -> None:
    def read(pieces: list[bytes]) -> list[bytes] | None:
        buffer = MessageBuffer(bytes_max)
        try:
            return [bytes(message) for piece in pieces for message in buffer.feed(piece)]
        except BadRequest:
            return None

    edges = [0, *sorted(cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(edges) if start <= end]
    if b"".join(pieces) == stream:
        assert read(pieces) == read([stream])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams)
def test_a_connection_survives_anything(pieces: list[bytes]) -> None:
    """Every answer is a well-formed reply, and the connection ends."""

    async def handler(method: str, given_parameters: dict[str, Any], _peer: Peer, more: Any) -> dict[str, Any]:
        assert OURS.methods[method].parameters.check(given_parameters) == given_parameters
        if more:
            await (more.begin({}) if isinstance(more, Channel) else more({}))
        return {}

    async def converse() -> bytes:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        with ours, theirs:
            connection = await Connection.open(ours, PEER, Limits(drain_seconds=5))
            serving = asyncio.create_task(connection.serve(Dispatch(handler)))
            reader, writer = await asyncio.open_unix_connection(sock=theirs)
            writer.writelines(pieces)
            writer.write_eof()
            async with asyncio.timeout(20):
                await serving
                await connection.abort()
                received = await reader.read()
            writer.close()
            return received

    received = asyncio.run(converse())
    *messages, rest = received.split(b"\0")
    assert not rest
    for message in messages:
        reply = decode_reply(message)
        assert reply.error is None or reply.error.startswith("org.varlink.service.")
